-- Lease a unit of a job (a shard's number, or "survey") to one attempt.
-- KEYS job, lease, holders, done, open, deaths, suspects, fence, watermark, events,
--      again, failures
-- ARGV unit, boot id, process id, holder (JSON), lease time in ms
-- Returns {"claimed", token, deaths, failures, suspicion}, or {reason}.
local unit, boot, pid = ARGV[1], ARGV[2], ARGV[3]
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return {'unknown'} end
if status ~= 'running' and not (status == 'queued' and unit == 'survey') then
  -- the message is used up; what a pause or a survey holds back stays due
  redis.call('ZREM', KEYS[5], unit)
  if status == 'paused' or status == 'queued' then redis.call('ZADD', KEYS[11], 0, unit) end
  return {status}
end
if unit ~= 'survey' then
  if tonumber(unit) >= tonumber(redis.call('HGET', KEYS[1], 'shards')) then
    redis.call('ZREM', KEYS[5], unit)
    return {'unknown'}
  end
  if redis.call('GETBIT', KEYS[4], unit) == 1 then
    redis.call('ZREM', KEYS[5], unit)
    return {'done'}
  end
end
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
-- a message that comes back at once does not cut the pause after a failure short
local due = redis.call('ZSCORE', KEYS[11], unit)
if due and tonumber(due) * 1000 > micros then return {'waiting'} end
local holder = redis.call('HGET', KEYS[3], unit)
if holder then
  local before = cjson.decode(holder)
  -- a worker has one process: another one under the same boot id has replaced a dead one
  if redis.call('EXISTS', KEYS[2]) == 1 and before.boot ~= boot then
    redis.call('HINCRBY', KEYS[1], 'duplicates_refused', 1)
    return {'leased'}
  end
  if before.pid ~= pid or before.boot ~= boot then
    -- only rows that were running can have killed it
    redis.call('HINCRBY', before.running and KEYS[6] or KEYS[12],
      tostring(before.running or unit), 1)
    redis.call('XADD', KEYS[10], 'MAXLEN', '~', 5000, '*',
      'kind', 'died', 'unit', unit, 'worker', before.worker)
  end
end
-- tokens only grow, a wiped Redis included: they start from its clock in microseconds
local token = redis.call('INCR', KEYS[8])
if token < micros then
  token = micros
  redis.call('SET', KEYS[8], string.format('%.0f', token))
end
token = string.format('%.0f', token)
redis.call('SET', KEYS[2], token, 'PX', ARGV[5])
local record = cjson.decode(ARGV[4])
record.token, record.since = token, math.floor(micros / 1000)
redis.call('HSET', KEYS[3], unit, cjson.encode(record))
redis.call('ZREM', KEYS[11], unit)
local published = redis.call('ZSCORE', KEYS[5], unit)
if published then
  if tonumber(published) > tonumber(redis.call('GET', KEYS[9]) or '0') then
    redis.call('SET', KEYS[9], published)
  end
else
  redis.call('ZADD', KEYS[5], math.floor(micros / 1000), unit)
end
return {'claimed', token, redis.call('HGET', KEYS[6], unit) or '0',
  redis.call('HGET', KEYS[12], unit) or '0', redis.call('HGET', KEYS[7], unit) or ''}
