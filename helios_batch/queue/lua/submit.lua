-- Create a job, or open an ended one again; a living one is left as it is.
-- KEYS job, jobs, active, and what is held against its units: deaths, failures, suspects, again
-- ARGV id, field, value, field, value, ...
-- Returns "created", "reopened", or the status of the living job.
local status = redis.call('HGET', KEYS[1], 'status')
if status and status ~= 'done' and status ~= 'failed' and status ~= 'cancelled' then
  return status
end
if status then redis.call('DEL', KEYS[4], KEYS[5], KEYS[6], KEYS[7]) end
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(field, 1, 6) == 'error:' then redis.call('HDEL', KEYS[1], field) end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'status', 'queued', 'submitted', now, unpack(ARGV, 2))
redis.call('HSET', KEYS[1], 'cursor', 0, 'done_shards', 0, 'recorded', '')
redis.call('HDEL', KEYS[1], 'error', 'ended')
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
return status and 'reopened' or 'created'
