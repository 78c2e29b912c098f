package api

import (
	"encoding/json"
	"time"
)

// Time is a time as the API writes it: RFC 3339, in UTC, always with three digits of
// milliseconds, so that times sort as text.
type Time struct{ time.Time }

// timeLayout is RFC 3339 with milliseconds.
const timeLayout = "2006-01-02T15:04:05.000Z07:00"

// MarshalJSON implements [json.Marshaler].
func (t Time) MarshalJSON() ([]byte, error) { return json.Marshal(t.String()) }

// MarshalText implements [encoding.TextMarshaler].
func (t Time) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// String returns the text that is in JSON.
func (t Time) String() string { return t.UTC().Format(timeLayout) }
