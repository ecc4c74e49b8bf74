-- Find units whose attempt died or whose message was lost; they are due again.
-- KEYS job, holders, open, again, deaths, watermark, events, failures
-- ARGV prefix of the job's lease keys, redelivery time in ms, 1 if the queue holds no message
-- Returns {attempts that died, messages that were lost}.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local died, lost = 0, 0
local holders = redis.call('HGETALL', KEYS[2])
for i = 1, #holders, 2 do
  local unit = holders[i]
  if redis.call('EXISTS', ARGV[1] .. unit) == 0 then
    -- what someone has damaged goes the way of a dead attempt
    local read, before = pcall(cjson.decode, holders[i + 1])
    if not read or type(before) ~= 'table' then before = {} end
    redis.call('HDEL', KEYS[2], unit)
    redis.call('ZREM', KEYS[3], unit)
    redis.call('HINCRBY', before.running and KEYS[5] or KEYS[8],
      tostring(before.running or unit), 1)
    redis.call('ZADD', KEYS[4], now, unit)
    redis.call('XADD', KEYS[7], 'MAXLEN', '~', 5000, '*',
      'kind', 'lease_expired', 'unit', unit, 'worker', before.worker or '?')
    died = died + 1
  end
end
-- a message is lost if younger ones were taken before it, or if the queue is empty without it
local watermark = tonumber(redis.call('GET', KEYS[6]) or '0')
local overdue = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[2], 'WITHSCORES')
for i = 1, #overdue, 2 do
  local unit = overdue[i]
  local gone = ARGV[3] == '1' or tonumber(overdue[i + 1]) < watermark
  if gone and redis.call('HEXISTS', KEYS[2], unit) == 0 then
    redis.call('ZREM', KEYS[3], unit)
    redis.call('ZADD', KEYS[4], now, unit)
    redis.call('XADD', KEYS[7], 'MAXLEN', '~', 5000, '*', 'kind', 'republished', 'unit', unit)
    lost = lost + 1
  end
end
if lost > 0 then redis.call('HINCRBY', KEYS[1], 'republished', lost) end
return {died, lost}
