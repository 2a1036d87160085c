-- Every type that has one of its own in parquet, and some that travel as text or
-- JSON; each column but the key with nulls; values at the ends of their ranges.
create table things (
  id bigint primary key,
  small smallint,
  int integer,
  big bigint,
  f4 real,
  f8 double precision,
  dec9 numeric(9,2),
  dec18 numeric(18,4),
  dec38 numeric(38,10),
  dec20 numeric(20,0),
  num numeric,
  flag boolean,
  words text,
  code varchar(10),
  raw bytea,
  day date,
  clock time,
  local timestamp,
  instant timestamptz,
  ref uuid,
  doc jsonb,
  list integer[],
  span interval
);
select setseed(0.5);
insert into things
select i,
  case when i % 11 <> 0 then (random() * 65535 - 32768)::int end,
  case when i % 7 <> 0 then (random() * 4294967295 - 2147483648)::bigint end,
  case when i % 5 <> 0 then (random() * 2e15 - 1e15)::bigint end,
  case when i % 13 <> 0 then (random() * 1000 - 500)::real end,
  case when i % 13 <> 1 then random() * 1e6 - 5e5 end,
  case when i % 6 <> 0 then (random() * 2e7 - 1e7)::numeric(9,2) end,
  case when i % 6 <> 1 then (random() * 2e13 - 1e13)::numeric(18,4) end,
  case when i % 6 <> 2 then ((random() * 2e15 - 1e15)::numeric * 1e10 + (random() * 1e10)::bigint::numeric / 1e10)::numeric(38,10) end,
  case when i % 6 <> 3 then (random() * 2e19 - 1e19)::numeric(20,0) end,
  case when i % 6 <> 4 then (random() * 1000)::numeric * (10::numeric ^ (i % 20)) end,
  case when i % 3 <> 0 then random() < 0.5 end,
  case when i % 9 <> 0 then md5(random()::text) || ' ' || repeat('añ€😀', (i % 5)::int) || md5(random()::text) || md5(random()::text) end,
  case when i % 9 <> 1 then substr(md5(i::text), 1, (i % 11)::int) end,
  case when i % 9 <> 2 then decode(substr(md5(i::text), 1, 2 * (i % 9)::int), 'hex') end,
  case when i % 8 <> 0 then date '1900-01-01' + (i % 90000)::int end,
  case when i % 8 <> 1 then time '00:00' + (i % 86400) * interval '1 second' + (i % 1000000) * interval '1 microsecond' end,
  case when i % 8 <> 2 then timestamp '1950-01-01' + random() * interval '150 years' end,
  case when i % 8 <> 3 then timestamptz '1950-01-01 00:00+00' + random() * interval '150 years' end,
  case when i % 10 <> 0 then md5(i::text || 'u')::uuid end,
  case when i % 10 <> 1 then jsonb_build_object('i', i, 'a', jsonb_build_array(null, true, i / 2.0), 't', 'é"\') end,
  case when i % 10 <> 2 then array[i::int, null, -1] end,
  case when i % 10 <> 3 then i * interval '1 minute 1.5 seconds' end
from generate_series(1, 300000) i;
insert into things (id, small, int, big, f4, f8, dec9, dec18, dec38, dec20, num, words, raw, day, clock, local, instant)
values
  (0, -32768, -2147483648, -9223372036854775808, '-Infinity', '-Infinity', -9999999.99, -99999999999999.9999,
   -9999999999999999999999999999.9999999999, -99999999999999999999, 'NaN', '', '', '0001-01-01', '00:00', '0001-01-01', '0001-01-01 00:00+00'),
  (-1, 32767, 2147483647, 9223372036854775807, 'NaN', 'NaN', 9999999.99, 99999999999999.9999,
   9999999999999999999999999999.9999999999, 99999999999999999999, 1e30, E'\n"', '\x00ff', '9999-12-31', '23:59:59.999999',
   '9999-12-31 23:59:59.999999', '9999-12-31 23:59:59.999999+00');
