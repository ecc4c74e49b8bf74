-- Give a unit back before its end; another attempt may start after a delay.
-- KEYS lease, holders, open, again, failures, deaths
-- ARGV unit, token, why ("handed_back", "failed", "died"), delay in ms
-- Returns the number of this unit's failures, or -1 if the lease was not held.
local unit, why, delay = ARGV[1], ARGV[3], tonumber(ARGV[4])
local holder = redis.call('HGET', KEYS[2], unit)
local record = holder and cjson.decode(holder)
if not record or record.token ~= ARGV[2] then return -1 end
redis.call('DEL', KEYS[1])
redis.call('HDEL', KEYS[2], unit)
redis.call('ZREM', KEYS[3], unit)
if why == 'died' and record.running then
  -- its rows may have killed it: the search for them goes on at once
  redis.call('HINCRBY', KEYS[6], tostring(record.running), 1)
  delay = 0
elseif why ~= 'handed_back' then
  redis.call('HINCRBY', KEYS[5], unit, 1)
end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[4], time[1] * 1000 + math.floor(time[2] / 1000) + delay, unit)
return tonumber(redis.call('HGET', KEYS[5], unit) or '0')
