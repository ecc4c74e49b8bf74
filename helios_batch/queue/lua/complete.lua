-- Record that a shard's part is published, whoever published it.
-- KEYS job, lease, holders, done, open, again, deaths, failures, suspects, published
-- ARGV unit, token, rows, error codes and their rows (JSON), then counter, amount, ...
-- Returns 1 if this was news.
local unit = ARGV[1]
-- first what Redis refuses when it is full: then nothing is written at all
local news = redis.call('SETBIT', KEYS[4], unit, 1) == 0
if news then
  redis.call('HINCRBY', KEYS[1], 'done_shards', 1)
  redis.call('XADD', KEYS[10], 'MAXLEN', '~', 5000, '*',
    'kind', 'published', 'unit', unit, 'rows', ARGV[3])
  for i = 5, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
  for code, rows in pairs(cjson.decode(ARGV[4])) do
    redis.call('HINCRBY', KEYS[1], 'error:' .. code, rows)
  end
end
local holder = redis.call('HGET', KEYS[3], unit)
if holder and cjson.decode(holder).token == ARGV[2] then redis.call('HDEL', KEYS[3], unit) end
if redis.call('GET', KEYS[2]) == ARGV[2] then redis.call('DEL', KEYS[2]) end
redis.call('ZREM', KEYS[5], unit)
redis.call('ZREM', KEYS[6], unit)
redis.call('HDEL', KEYS[7], unit)
redis.call('HDEL', KEYS[8], unit)
redis.call('HDEL', KEYS[9], unit)
return news and 1 or 0
