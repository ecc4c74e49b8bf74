-- Note that rows are about to run under a lease: from now on its process may die of them.
-- KEYS holders   ARGV unit, token, what a death counts against
local holder = redis.call('HGET', KEYS[1], ARGV[1])
if not holder then return 0 end
local record = cjson.decode(holder)
if record.token ~= ARGV[2] then return 0 end
record.running = ARGV[3]
redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(record))
return 1
