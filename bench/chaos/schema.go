package chaos

import "github.com/athena-pipelines/athena/bench/judge"

// Schema makes the tables of the load, in the source and in the replica. Each
// shows something: large values, keys of several columns, no key, a key that is
// no primary key, every sort of type, names that need quoting, partitions,
// columns that come and go.
const Schema = `
create sequence ids;
create sequence versions;

create table orders (
	id bigint primary key default nextval('ids'), ver bigint default nextval('versions'),
	status text, total numeric(12,2), note text, raw bytea, placed timestamptz default clock_timestamp()
);
alter table orders alter note set storage external, alter raw set storage external;

create table items (
	region text, id bigint default nextval('ids'), ver bigint default nextval('versions'), sku text, qty int,
	primary key (region, id)
);

create table logs (ver bigint default nextval('versions'), at timestamptz default clock_timestamp(), line text);
alter table logs alter line set storage external;
alter table logs replica identity full;

create table indexed (id bigint not null default nextval('ids'), ver bigint default nextval('versions'), body text);
create unique index indexed_id on indexed (id);
alter table indexed replica identity using index indexed_id;

create type mood as enum ('glad', 'so so', 'sad');
create type pair as (x int, note text);
create domain positive as int check (value > 0);
create table kinds (
	id bigint primary key default nextval('ids'), ver bigint default nextval('versions'),
	si smallint, bi bigint, re real, dp double precision, nu numeric, bo boolean, vc varchar(40), ch char(5),
	ts timestamp, tz timestamptz, da date, ti time, tt timetz, iv interval, by bytea, js json, jb jsonb, uu uuid, ip inet,
	ia int[], ta text[], ra int4range, tr tstzrange, mu int4multirange, co pair, ca pair[], en mood, po positive,
	pt point, bx varbit, mo money, tv tsvector, ls pg_lsn
);

create schema "odd.one";
create table "odd.one"."Strange ""name*" (id bigint primary key default nextval('ids'), ver bigint default nextval('versions'), "Val ue" text);

create table parts (id bigint primary key default nextval('ids'), ver bigint default nextval('versions'), body text) partition by hash (id);
create table parts_0 partition of parts for values with (modulus 2, remainder 0);
create table parts_1 partition of parts for values with (modulus 2, remainder 1);

create table scratch (id bigint primary key default nextval('ids'), ver bigint default nextval('versions'), body text);

create table shape (id bigint primary key default nextval('ids'), ver bigint default nextval('versions'));

create table marks (id bigint primary key default nextval('ids'), ver bigint default nextval('versions'));
`

// uncaptured are tables beside those of Schema that nobody captures: what
// became of each transaction, and writes that are none of ours.
const uncaptured = `
create table outcomes (n bigint primary key);
create table foreign_rows (body text);
alter table foreign_rows alter body set storage external;
`

// Tables lists the tables of Schema.
func Tables() []judge.Table {
	return []judge.Table{
		{Schema: "public", Name: "orders"}, {Schema: "public", Name: "items"}, {Schema: "public", Name: "logs"},
		{Schema: "public", Name: "indexed"}, {Schema: "public", Name: "kinds"}, {Schema: "odd.one", Name: `Strange "name*`},
		{Schema: "public", Name: "parts"}, {Schema: "public", Name: "scratch"}, {Schema: "public", Name: "shape"},
		{Schema: "public", Name: "marks"},
	}
}
