-- The sample database of `athena dev`: a small shop. All values follow from the
-- row's number, so that every machine gets the same data.

CREATE TYPE order_status AS ENUM ('cart', 'placed', 'paid', 'shipped', 'delivered', 'cancelled');

-- pick gives a number from 0 to n-1 that depends on a seed and a salt alone.
CREATE FUNCTION pick(seed bigint, salt text, n int) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (('x' || substr(md5(seed::text || salt), 1, 7))::bit(28)::int % n);

CREATE TABLE customers (
	id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	email      text NOT NULL UNIQUE,
	name       text NOT NULL,
	country    char(2) NOT NULL,
	tags       text[] NOT NULL DEFAULT '{}',
	address    jsonb,
	newsletter boolean NOT NULL DEFAULT false,
	last_ip    inet,
	created_at timestamptz NOT NULL
);
COMMENT ON TABLE customers IS 'Who buys';

CREATE TABLE products (
	id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	sku      uuid NOT NULL UNIQUE,
	name     text NOT NULL,
	category text NOT NULL,
	price    numeric(10,2) NOT NULL CHECK (price > 0),
	weight_g real,
	stock    integer NOT NULL CHECK (stock >= 0),
	details  jsonb NOT NULL DEFAULT '{}'
);
COMMENT ON COLUMN products.weight_g IS 'in grams; NULL where it is not shipped';

CREATE TABLE orders (
	id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	customer_id bigint NOT NULL REFERENCES customers,
	status      order_status NOT NULL DEFAULT 'cart',
	placed_at   timestamptz NOT NULL,
	deliver_on  date,
	note        text
);
CREATE INDEX orders_customer ON orders (customer_id);
CREATE INDEX orders_placed ON orders (placed_at DESC);

CREATE TABLE order_items (
	order_id   bigint NOT NULL REFERENCES orders ON DELETE CASCADE,
	line       smallint NOT NULL,
	product_id bigint NOT NULL REFERENCES products,
	quantity   integer NOT NULL CHECK (quantity > 0),
	unit_price numeric(10,2) NOT NULL,
	PRIMARY KEY (order_id, line)
);
CREATE INDEX order_items_product ON order_items (product_id);

CREATE VIEW order_totals AS
	SELECT o.id, o.customer_id, o.status, o.placed_at, sum(i.quantity * i.unit_price) AS total
	FROM orders o JOIN order_items i ON i.order_id = o.id
	GROUP BY o.id;

INSERT INTO customers (email, name, country, tags, address, newsletter, last_ip, created_at)
SELECT
	lower(first || '.' || last) || n || '@example.com',
	first || ' ' || last,
	(ARRAY['DE','FR','NL','ES','IT','PL','SE','AT'])[1 + pick(n, 'country', 8)],
	CASE pick(n, 'tags', 4) WHEN 0 THEN '{vip}' WHEN 1 THEN '{wholesale,net30}' ELSE '{}' END::text[],
	CASE WHEN pick(n, 'address', 10) > 0 THEN jsonb_build_object(
		'street', (ARRAY['Harbour Road','Mill Lane','Station Square','Orchard Way','Market Street'])[1 + pick(n, 'street', 5)] || ' ' || (1 + pick(n, 'house', 120)),
		'zip', lpad(pick(n, 'zip', 100000)::text, 5, '0')) END,
	pick(n, 'newsletter', 3) = 0,
	CASE WHEN pick(n, 'ip', 5) > 0 THEN ('192.0.2.' || pick(n, 'ip4', 254) + 1)::inet END,
	timestamptz '2024-01-01 08:00+00' + n * interval '13 hours' + pick(n, 'joined', 3600) * interval '1 second'
FROM generate_series(1, 800) n,
LATERAL (SELECT
	(ARRAY['Ada','Grace','Linus','Edsger','Barbara','Niklaus','Frances','Donald','Radia','Tony','Jean','Alan'])[1 + pick(n, 'first', 12)] AS first,
	(ARRAY['Moreau','Lindqvist','Kowalski','Bakker','Rossi','Garcia','Huber','Novak','Jansen','Petit'])[1 + pick(n, 'last', 10)] AS last) names;

INSERT INTO products (sku, name, category, price, weight_g, stock, details)
SELECT
	md5('sku' || n)::uuid,
	(ARRAY['Oak','Walnut','Steel','Linen','Cork','Clay','Wool','Glass'])[1 + pick(n, 'material', 8)] || ' ' ||
	(ARRAY['lamp','chair','bowl','shelf','blanket','mug','clock','basket','tray','mirror'])[1 + pick(n, 'thing', 10)] || ' No. ' || n,
	(ARRAY['light','furniture','kitchen','textiles','decoration'])[1 + pick(n, 'category', 5)],
	(490 + pick(n, 'price', 29500)) / 100.0,
	CASE WHEN pick(n, 'weight', 20) > 0 THEN 80 + pick(n, 'grams', 9000) END,
	pick(n, 'stock', 400),
	jsonb_build_object('colours', CASE WHEN pick(n, 'colours', 2) = 0 THEN '["natural"]'::jsonb ELSE '["natural","black"]'::jsonb END, 'handmade', pick(n, 'handmade', 4) = 0)
FROM generate_series(1, 240) n;

INSERT INTO orders (customer_id, status, placed_at, deliver_on, note)
SELECT
	1 + pick(n, 'customer', 800),
	status,
	placed,
	CASE WHEN status IN ('shipped', 'delivered') THEN placed::date + 2 + pick(n, 'days', 6) END,
	CASE pick(n, 'note', 12) WHEN 0 THEN 'Leave it with the neighbours' WHEN 1 THEN 'It is a gift — no price, please' END
FROM generate_series(1, 4000) n,
LATERAL (SELECT
	(ARRAY['cart','placed','paid','shipped','delivered','delivered','delivered','cancelled']::order_status[])[1 + pick(n, 'status', 8)] AS status,
	timestamptz '2025-06-01 06:00+00' + n * interval '3 hours' + pick(n, 'placed', 10800) * interval '1 second' AS placed) o;

INSERT INTO order_items (order_id, line, product_id, quantity, unit_price)
SELECT o.id, line, p.id, 1 + pick(o.id * 10 + line, 'quantity', 4), p.price
FROM orders o
CROSS JOIN generate_series(1, 4) line
JOIN products p ON p.id = 1 + (pick(o.id, 'product', 240) + line * 7) % 240
WHERE line <= 1 + pick(o.id, 'lines', 4);

ANALYZE;
