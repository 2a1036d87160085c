package record_test

import (
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/athena-pipelines/athena/pkg/record"
)

func convert(to, from record.Type, text string) (string, error) {
	src, dst := record.Vector{Kind: from.Kind}, record.Vector{Kind: to.Kind}
	if err := src.AppendParsed(from, []byte(text)); err != nil {
		panic(err)
	}
	if err := record.Convert(&dst, to, &src, from, 0); err != nil {
		if dst.Len() != 0 || len(dst.Data) != 0 {
			panic("something was appended")
		}
		return "", err
	}
	return string(dst.AppendText(nil, to, 0)), nil
}

func TestConversionsAreExactOrRefused(t *testing.T) {
	t.Parallel()
	tests := []struct {
		from     record.Type
		in       string
		to       record.Type
		want     string // empty is refused
		sentence string
	}{
		{record.TypeInt64, "70000", record.TypeInt32, "70000", "it fits"},
		{record.TypeInt64, "70000", record.TypeInt16, "", "too large"},
		{record.TypeInt64, "9007199254740993", record.TypeFloat64, "", "no such float"},
		{record.TypeInt64, "9007199254740992", record.TypeFloat64, "9.007199254740992e+15", "there is one"},
		{record.TypeInt64, "9223372036854775807", record.TypeFloat64, "", "rounded up out of 64 bits"},
		{record.TypeInt32, "16777217", record.TypeFloat32, "", "no such float of 32 bits"},
		{record.TypeInt32, "12", record.DecimalOf(5, 2), "12.00", "with the digits of the scale"},
		{record.TypeInt32, "1234", record.DecimalOf(5, 2), "", "too many digits"},
		{record.TypeInt32, "1", record.TypeBool, "true", "one is true"},
		{record.TypeInt32, "2", record.TypeBool, "", "two is neither"},
		{record.TypeBool, "false", record.TypeInt16, "0", "false is zero"},
		{record.TypeFloat64, "3", record.TypeInt16, "3", "whole"},
		{record.TypeFloat64, "3.5", record.TypeInt16, "", "a fraction"},
		{record.TypeFloat64, "NaN", record.TypeInt64, "", "no number"},
		{record.TypeFloat64, "1e+19", record.TypeInt64, "", "beyond 64 bits"},
		{record.TypeFloat64, "0.1", record.TypeFloat32, "", "loses digits"},
		{record.TypeFloat64, "0.5", record.TypeFloat32, "0.5", "keeps them"},
		{record.TypeFloat32, "0.1", record.TypeDecimal, "0.1", "its fewest digits"},
		{record.TypeFloat64, "1e-7", record.DecimalOf(20, 10), "0.0000001000", "out of an exponent"},
		{record.TypeDecimal, "12.00", record.TypeInt32, "12", "a fraction of zeros"},
		{record.TypeDecimal, "12.01", record.TypeInt32, "", "a fraction"},
		{record.TypeDecimal, "0.10", record.TypeFloat64, "0.1", "the float gives it back"},
		{record.TypeDecimal, "0.12345678901234567890", record.TypeFloat64, "", "the float does not"},
		{record.TypeDecimal, "NaN", record.TypeFloat64, "NaN", "no number stays none"},
		{record.DecimalOf(10, 4), "1.2300", record.DecimalOf(5, 2), "1.23", "exact"},
		{record.DecimalOf(10, 4), "1.2345", record.DecimalOf(5, 2), "", "digits lost"},
		{record.DecimalOf(5, 2), "1.23", record.DecimalOf(10, 4), "1.2300", "digits added"},
		{record.TypeText, "2026-11-22", record.TypeDate, "2026-11-22", "a date"},
		{record.TypeText, "22.11.2026", record.TypeDate, "", "in another form"},
		{record.TypeText, `{"a":1}`, record.TypeJSON, `{"a":1}`, "JSON"},
		{record.TypeText, `{a:1}`, record.TypeJSON, ``, "none"},
		{record.TypeJSON, `{"a": 1}`, record.TypeText, `{"a": 1}`, "as it is"},
		{record.TypeJSON, `"2026-11-22"`, record.TypeDate, "2026-11-22", "as members are read"},
		{record.TypeJSON, `12`, record.TypeInt16, "12", "a number"},
		{record.TypeJSON, `[12]`, record.TypeInt16, "", "an array"},
		{record.TypeTimestamp, "2026-11-22T00:00:00", record.TypeDate, "2026-11-22", "midnight"},
		{record.TypeTimestamp, "2026-11-22T00:00:01", record.TypeDate, "", "no midnight"},
		{record.TypeTimestamp, "1969-12-31T00:00:00", record.TypeDate, "1969-12-31", "midnight before the epoch"},
		{record.TypeDate, "2026-11-22", record.TypeTimestampTZ, "2026-11-22T00:00:00.000000Z", "midnight in UTC"},
		{record.TypeDate, "infinity", record.TypeTimestamp, "infinity", "no end"},
		{record.TypeDate, "+5874897-12-31", record.TypeTimestamp, "", "no room"},
		{record.TypeTimestamp, "2026-11-22T10:00:00", record.TypeTimestampTZ, "2026-11-22T10:00:00.000000Z", "in UTC"},
		{record.TypeUUID, "6ba7b810-9dad-11d1-80b4-00c04fd430c8", record.TypeBytes, "a6e4EJ2tEdGAtADAT9QwyA==", "its bytes"},
		{record.TypeBytes, "AP8Q", record.TypeUUID, "", "too few"},
		{record.TypeBool, "true", record.TypeDate, "", "no sense in it"},
	}
	for _, test := range tests {
		t.Run(fmt.Sprintf("%s %s to %s: %s", test.from, test.in, test.to, test.sentence), func(t *testing.T) {
			t.Parallel()
			got, err := convert(test.to, test.from, test.in)
			var v *record.ValueError
			if got != test.want || err != nil && !errors.As(err, &v) || err == nil && test.want == "" {
				t.Fatalf("%q, %v", got, err)
			}
		})
	}
}

func types() []record.Type {
	out := []record.Type{record.DecimalOf(12, 4), record.DecimalOf(38, 10), record.DecimalOf(5, 0), record.DecimalOf(19, 0)}
	for _, c := range everything.Columns {
		out = append(out, c.Type)
	}
	return out
}

// What was converted can come back, and is the same value then. Text and JSON have
// more than one form of a value.
func TestConvertingThereAndBackGivesTheSameValue(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		from := rapid.SampledFrom(types()).Draw(t, "from")
		to := rapid.SampledFrom(types()).Draw(t, "to")
		src, mid, back := record.Vector{Kind: from.Kind}, record.Vector{Kind: to.Kind}, record.Vector{Kind: from.Kind}
		drawValue(t, &src, from)
		err := record.Convert(&mid, to, &src, from, 0)
		switch {
		case err == nil && !record.Convertible(from, to) && !src.Null(0):
			t.Fatal("converted, though it cannot be")
		case err != nil && record.Widens(from, to):
			t.Fatalf("%s widens to %s, and yet %v", from, to, err)
		case err != nil:
			if mid.Len() != 0 || len(mid.Data) != 0 {
				t.Fatal("something was appended")
			}
			return
		case mid.Len() != 1 || mid.Null(0) != src.Null(0) || mid.Absent(0) != src.Absent(0):
			t.Fatal("another null")
		case !record.Convertible(to, from):
			return
		}
		if err := record.Convert(&back, from, &mid, to, 0); err != nil {
			t.Fatalf("%s %s came to %s, and back %v", from, src.AppendText(nil, from, 0), mid.AppendText(nil, to, 0), err)
		}
		x, y := string(src.AppendText(nil, from, 0)), string(back.AppendText(nil, from, 0))
		if from.Kind == record.Decimal && from.Precision == 0 && to.Kind != record.Text && to.Kind != record.JSON {
			a, b := record.Vector{Kind: record.Decimal}, record.Vector{Kind: record.Decimal}
			_ = record.Convert(&a, record.TypeDecimal, &src, from, 0)
			_ = record.Convert(&b, record.TypeDecimal, &back, from, 0)
			x, y = trimmed(a.Bytes(0)), trimmed(b.Bytes(0))
		}
		if x != y && !(x == "-0" && y == "0") && from.Kind != record.Text && from.Kind != record.JSON {
			t.Fatalf("%s %s came back from %s as %s", from, x, to, y)
		}
	})
}

// trimmed drops the zeros that end a decimal: other types do not keep them.
func trimmed(s []byte) string {
	for i, c := range s {
		if c == '.' {
			end := len(s)
			for end > i && (s[end-1] == '0' || end-1 == i) {
				end--
			}
			return string(s[:end])
		}
	}
	return string(s)
}
