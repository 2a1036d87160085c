select name, value from (
  select 1 n, 'rows' name, count(*)::text value from things
  union all select 2, 'nulls of words', count(*) filter (where words is null)::text from things
  union all select 3, 'sum of int', sum(int)::text from things
  union all select 4, 'sum of big', sum(big)::text from things where id > 0
  union all select 5, 'sum of dec9', sum(dec9)::text from things
  union all select 6, 'sum of dec18', sum(dec18)::text from things
  union all select 7, 'sum of dec38', sum(dec38)::text from things where id > 0
  union all select 8, 'dec38 below nothing', count(*)::text from things where dec38 < 0
  union all select 9, 'dec38 above much', count(*)::text from things where dec38 > 9000000000000000000000000
  union all select 10, 'dec20 below much', count(*)::text from things where dec20 < -9000000000000000000
  union all select 11, 'true flags', count(*)::text from things where flag
  union all select 12, 'first day', min(day)::text from things
  union all select 13, 'last day', max(day)::text from things
  union all select 14, 'last local', max(local)::text from things where id > 0
  union all select 15, 'instants after 2000', count(*)::text from things where instant >= timestamptz '2000-01-01 00:00+00' and id > 0
  union all select 16, 'different refs', count(distinct ref)::text from things
  union all select 17, 'length of words', sum(length(words))::text from things
  union all select 18, 'bytes of raw', sum(octet_length(raw))::text from things
  union all select 19, 'words below m', count(*)::text from things where words < '8' collate "C"
  union all select 20, 'one row', words from things where id = 123457
) sums order by n
