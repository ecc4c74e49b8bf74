-- Choose the job's next units, as many as there is room for, and mark them as sent.
-- KEYS job, open, again, done   ARGV room
-- Returns the units; a message is to be sent for each.
local job, open, again, done = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local room = tonumber(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local units = {}
local function send(unit)
  redis.call('ZADD', open, now, unit)
  redis.call('HSET', job, 'sent', now)
  units[#units + 1] = tostring(unit)
end
local status = redis.call('HGET', job, 'status')
if status ~= 'queued' and status ~= 'running' then return units end
if status == 'queued' then
  local due = tonumber(redis.call('ZSCORE', again, 'survey') or now)
  if due <= now and not redis.call('ZSCORE', open, 'survey') then
    redis.call('ZREM', again, 'survey')
    send('survey')
  end
  return units
end
for _, unit in ipairs(redis.call('ZRANGEBYSCORE', again, '-inf', now, 'LIMIT', 0, room)) do
  redis.call('ZREM', again, unit)
  if unit == 'survey' or redis.call('GETBIT', done, unit) == 0 then send(unit) end
end
local fields = redis.call('HMGET', job, 'cursor', 'shards', 'done_shards')
local cursor, shards, finished = tonumber(fields[1]), tonumber(fields[2]), tonumber(fields[3])
local looked = 0
while #units < room and cursor < shards and looked < 20000 do
  if cursor % 8 == 0 and redis.call('GETBIT', done, cursor) == 1 then
    -- skip a run of finished shards in one step
    cursor = math.min(redis.call('BITPOS', done, 0, cursor / 8), shards)
  end
  if cursor < shards then
    if redis.call('GETBIT', done, cursor) == 0
      and not redis.call('ZSCORE', open, cursor) and not redis.call('ZSCORE', again, cursor) then
      send(cursor)
    end
    cursor = cursor + 1
  end
  looked = looked + 1
end
redis.call('HSET', job, 'cursor', cursor)
-- all handed out and nothing on its way: the folder has the last word
if cursor >= shards and redis.call('ZCARD', open) == 0 and redis.call('ZCARD', again) == 0 then
  if finished < shards then redis.call('HSET', job, 'status', 'queued') end
  send('survey')
end
return units
