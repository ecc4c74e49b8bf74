-- Take over what a survey found in the output folder.
-- KEYS job, lease, holders, done, open, again, failures
-- ARGV token, status to set, finished shards, bitmap of them, field, value, ...
-- Returns 1, or 0 if the survey's lease was lost or the job was stopped meanwhile.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'queued' and status ~= 'running' then return 0 end
redis.call('SET', KEYS[4], ARGV[4])
redis.call('HSET', KEYS[1], 'status', ARGV[2], 'done_shards', ARGV[3], 'cursor', 0, unpack(ARGV, 5))
local time = redis.call('TIME')
local moment = ARGV[2] == 'done' and 'ended' or 'started'
redis.call('HSET', KEYS[1], moment, time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('DEL', KEYS[2])
redis.call('HDEL', KEYS[3], 'survey')
redis.call('ZREM', KEYS[5], 'survey')
redis.call('ZREM', KEYS[6], 'survey')
redis.call('HDEL', KEYS[7], 'survey')
return 1
