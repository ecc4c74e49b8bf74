-- Note that a lease's rows are about to run: from now on its process may die of them.
-- KEYS holders   ARGV unit, token
local holder = redis.call('HGET', KEYS[1], ARGV[1])
if not holder then return 0 end
local record = cjson.decode(holder)
if record.token ~= ARGV[2] then return 0 end
record.running = true
redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(record))
return 1
