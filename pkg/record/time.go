package record

import "strconv"

const (
	dayMicros = 24 * 60 * 60 * 1000000
	// mostDays keeps a timestamp of that day within 64 bits.
	mostDays = int64(1<<63-1)/dayMicros - 1
)

// dayOf counts the days from 1970-01-01 to a day of the Gregorian calendar, which
// is taken to have been there always. Years begin in March, so that the day that
// may be missing is the last of its year.
func dayOf(year, month, day int64) int64 {
	if month <= 2 {
		year, month = year-1, month+12
	}
	era := floorDiv(year, 400)
	y := year - era*400
	return era*146097 + y*365 + y/4 - y/100 + (153*(month-3)+2)/5 + day - 1 - 719468
}

// dateOf is the inverse of dayOf.
func dateOf(days int64) (year, month, day int64) {
	days += 719468
	era := floorDiv(days, 146097)
	d := days - era*146097
	y := (d - d/1460 + d/36524 - d/146096) / 365
	d -= y*365 + y/4 - y/100
	m := (5*d + 2) / 153
	day = d - (153*m+2)/5 + 1
	year = era*400 + y
	if month = m + 3; month > 12 {
		year, month = year+1, month-12
	}
	return year, month, day
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

func monthDays(year, month int64) int64 {
	switch month {
	case 4, 6, 9, 11:
		return 30
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	}
	return 31
}

// appendDate writes a Date as docs/types.md has it.
func appendDate(dst []byte, days int64) []byte {
	switch days {
	case Infinity:
		return append(dst, "infinity"...)
	case MinusInfinity:
		return append(dst, "-infinity"...)
	}
	if days > 1<<40 || days < -1<<40 { // no engine has such dates
		return strconv.AppendInt(dst, days, 10)
	}
	year, month, day := dateOf(days)
	switch {
	case year < 0:
		dst = appendPadded(append(dst, '-'), -year, 6)
	case year > 9999:
		dst = appendPadded(append(dst, '+'), year, 6)
	default:
		dst = appendPadded(dst, year, 4)
	}
	dst = appendPadded(append(dst, '-'), month, 2)
	return appendPadded(append(dst, '-'), day, 2)
}

// appendTimestamp writes a Timestamp, or a TimestampTZ with its Z.
func appendTimestamp(dst []byte, micros int64, zone bool) []byte {
	if micros == Infinity || micros == MinusInfinity {
		return appendDate(dst, micros)
	}
	days := floorDiv(micros, dayMicros)
	micros -= days * dayMicros
	dst = append(appendDate(dst, days), 'T')
	dst = appendClock(dst, micros)
	dst = appendPadded(append(dst, '.'), micros%1000000, 6)
	if zone {
		dst = append(dst, 'Z')
	}
	return dst
}

// appendTimeOfDay writes a Time as PostgreSQL does, 10:00:00.5.
func appendTimeOfDay(dst []byte, micros int64) []byte {
	dst = appendClock(dst, micros)
	if f := micros % 1000000; f != 0 {
		dst = appendPadded(append(dst, '.'), f, 6)
		for dst[len(dst)-1] == '0' {
			dst = dst[:len(dst)-1]
		}
	}
	return dst
}

func appendClock(dst []byte, micros int64) []byte {
	s := micros / 1000000
	dst = appendPadded(dst, s/3600, 2)
	dst = appendPadded(append(dst, ':'), s/60%60, 2)
	return appendPadded(append(dst, ':'), s%60, 2)
}

func appendPadded(dst []byte, n int64, width int) []byte {
	var buf [20]byte
	i := len(buf)
	for ; n > 0 || width > 0; n, width = n/10, width-1 {
		i--
		buf[i] = byte('0' + n%10)
	}
	return append(dst, buf[i:]...)
}

// cursor reads the parts of a time. A part that is not there makes bad true.
type cursor struct {
	s   []byte
	bad bool
}

func (c *cursor) peek() byte {
	if len(c.s) == 0 {
		return 0
	}
	return c.s[0]
}

func (c *cursor) skip(b byte) {
	if c.peek() != b {
		c.bad = true
		return
	}
	c.s = c.s[1:]
}

// number reads from least to most digits.
func (c *cursor) number(least, most int) (n int64) {
	i := 0
	for ; i < len(c.s) && i < most && c.s[i]-'0' <= 9; i++ {
		n = n*10 + int64(c.s[i]-'0')
	}
	c.bad = c.bad || i < least
	c.s = c.s[i:]
	return n
}

func (c *cursor) date() int64 {
	sign := c.peek()
	if sign == '-' || sign == '+' {
		c.s = c.s[1:]
	}
	year := c.number(4, 7)
	if sign == '-' {
		year = -year
	}
	c.skip('-')
	month := c.number(2, 2)
	c.skip('-')
	day := c.number(2, 2)
	if c.bad || month < 1 || month > 12 || day < 1 || day > monthDays(year, month) {
		c.bad = true
		return 0
	}
	return dayOf(year, month, day)
}

func (c *cursor) clock() int64 {
	hour := c.number(2, 2)
	c.skip(':')
	minute := c.number(2, 2)
	var second, fraction int64
	if c.peek() == ':' {
		c.s = c.s[1:]
		second = c.number(2, 2)
		if c.peek() == '.' {
			c.s = c.s[1:]
			before := len(c.s)
			fraction = c.number(1, 6)
			for n := before - len(c.s); n < 6; n++ {
				fraction *= 10
			}
			for c.peek() == '0' { // of no weight; other digits are left and do not fit
				c.s = c.s[1:]
			}
		}
	}
	micros := ((hour*60+minute)*60+second)*1000000 + fraction
	c.bad = c.bad || minute > 59 || second > 59 || micros > dayMicros
	return micros
}

// zone reads Z or an offset, in microseconds.
func (c *cursor) zone() int64 {
	sign := c.peek()
	switch sign {
	case 'Z', 'z':
		c.s = c.s[1:]
		return 0
	case '+', '-':
		c.s = c.s[1:]
	default:
		c.bad = true
		return 0
	}
	n := c.number(2, 2) * 3600
	for unit := int64(60); unit > 0 && len(c.s) > 0; unit /= 60 {
		if c.peek() == ':' {
			c.s = c.s[1:]
		}
		part := c.number(2, 2)
		c.bad = c.bad || part > 59
		n += part * unit
	}
	if sign == '-' {
		n = -n
	}
	return n * 1000000
}

func (c *cursor) done() bool { return !c.bad && len(c.s) == 0 }

// parseTime reads a value of one of the kinds of time.
func parseTime(s []byte, k Kind) (int64, bool) {
	if k != Time && len(s) > 0 && s[len(s)-1] == 'y' {
		switch string(s) {
		case "infinity":
			return Infinity, true
		case "-infinity":
			return MinusInfinity, true
		}
		return 0, false
	}
	c := cursor{s: s}
	if k == Time {
		n := c.clock()
		return n, c.done()
	}
	n := c.date()
	if k == Date {
		return n, c.done()
	}
	if n > mostDays || n < -mostDays {
		return 0, false
	}
	n *= dayMicros
	if k == Timestamp && len(c.s) == 0 {
		return n, !c.bad
	}
	if c.peek() == ' ' {
		c.skip(' ')
	} else {
		c.skip('T')
	}
	clock := c.clock()
	c.bad = c.bad || clock == dayMicros // the next day has another name
	n += clock
	if k == TimestampTZ {
		n -= c.zone()
	}
	return n, c.done()
}
