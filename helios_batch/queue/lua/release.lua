-- Give a unit back before its end; another attempt may start after a delay.
-- KEYS lease, holders, open, again, failures, deaths
-- ARGV unit, token, why ("handed_back", "failed", "died"), delay in ms
-- Returns the number of this unit's failures, or -1 if the lease was not held.
local unit = ARGV[1]
local holder = redis.call('HGET', KEYS[2], unit)
if not holder or cjson.decode(holder).token ~= ARGV[2] then return -1 end
redis.call('DEL', KEYS[1])
redis.call('HDEL', KEYS[2], unit)
redis.call('ZREM', KEYS[3], unit)
local time = redis.call('TIME')
redis.call('ZADD', KEYS[4], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[4], unit)
if ARGV[3] == 'died' then redis.call('HINCRBY', KEYS[6], unit, 1) end
if ARGV[3] == 'failed' then return redis.call('HINCRBY', KEYS[5], unit, 1) end
return tonumber(redis.call('HGET', KEYS[5], unit) or '0')
