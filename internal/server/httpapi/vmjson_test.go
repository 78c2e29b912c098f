package httpapi

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
)

// TestAppendVMAsEncodingJSON compares VMs with each field alone, with all
// fields, and with none.
func TestAppendVMAsEncodingJSON(t *testing.T) {
	when := time.Date(2026, 3, 6, 12, 0, 0, 120_000_000, time.UTC)
	whole := api.VM{CreatedAt: when, UpdatedAt: when.Add(time.Second)}
	compare(t, whole)
	for i := range reflect.TypeFor[api.VM]().NumField() {
		one := api.VM{}
		fill(t, reflect.ValueOf(&one).Elem().Field(i), when)
		fill(t, reflect.ValueOf(&whole).Elem().Field(i), when)
		compare(t, one)
	}
	compare(t, whole)
}

// fill sets a field to a value that is awkward to encode. It fails on types
// that appendVM does not know, such as a field's that was added later.
func fill(t *testing.T, field reflect.Value, when time.Time) {
	t.Helper()
	const awkward = "a\"\\\n\t\x01\x7f<&>ä\u2028\xff😀"
	values := []any{
		awkward, 7, true, when, &when,
		map[string]string{"b": "2", awkward: awkward, "a": ""},
		[]string{"", awkward},
		&api.Sleep{TakenAt: when, Durable: true, SizeBytes: 1 << 40},
		&api.RateLimits{Disk: &api.DiskRateLimit{BytesPerSecond: 1 << 40, OpsPerSecond: 10}, NetworkIn: &api.NetworkRateLimit{}},
		[]api.Condition{{}, {Type: "t", Status: "s", Reason: awkward, Message: "m", ChangedAt: when}},
	}
	for _, v := range values {
		if reflect.TypeOf(v) == field.Type() {
			field.Set(reflect.ValueOf(v))
			return
		}
	}
	t.Fatalf("no value of type %s: does appendVM know it?", field.Type())
}

func compare(t *testing.T, v api.VM) {
	t.Helper()
	var want bytes.Buffer
	enc := json.NewEncoder(&want)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	if got := string(appendVM(nil, &v)) + "\n"; got != want.String() {
		t.Errorf("got  %swant %s", got, want.String())
	}
}
