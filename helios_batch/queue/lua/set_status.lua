-- Change a job's status if it may change so.
-- KEYS job, active, events   ARGV id, new status, allowed old statuses (comma-separated), error
-- Returns {1 or 0, the status now}.
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return {0, 'unknown'} end
if not string.find(',' .. ARGV[3] .. ',', ',' .. status .. ',', 1, true) then return {0, status} end
redis.call('HSET', KEYS[1], 'status', ARGV[2])
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'error', ARGV[4]) end
if ARGV[2] == 'failed' or ARGV[2] == 'cancelled' then
  redis.call('HSET', KEYS[1], 'ended', redis.call('TIME')[1] * 1000)
end
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 5000, '*', 'kind', ARGV[2], 'error', ARGV[4])
return {1, ARGV[2]}
