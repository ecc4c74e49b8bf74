-- Keep a lease, or learn that it is lost; the commit of a part asks the same question.
-- KEYS job, lease   ARGV token, lease time in ms
-- Returns "held", "lost", or the status that stopped the job.
-- PEXPIRE works where Redis is full; so nobody loses a lease to maxmemory.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 'lost' end
local status = redis.call('HGET', KEYS[1], 'status')
-- shards that run may finish while their job is paused or surveyed
if status ~= 'running' and status ~= 'paused' and status ~= 'queued' then return status or 'lost' end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 'held'
