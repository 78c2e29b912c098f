package payload_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/hatchvm/hatch/test/payload"
)

func TestAChangeChangesTheSum(t *testing.T) {
	const size, block = 5<<16 + 7, 1 << 16
	body, err := io.ReadAll(payload.Reader(size))
	if err != nil || len(body) != size {
		t.Fatalf("%d bytes, %v", len(body), err)
	}
	sumOf := func(b ...[]byte) uint64 {
		sum := payload.Sum()
		_, _ = sum.Write(bytes.Join(b, nil))
		return sum.Sum64()
	}
	want := payload.SumOf(size)
	if got := sumOf(body); got != want {
		t.Errorf("the body has the sum %x, want %x", got, want)
	}
	for what, other := range map[string]uint64{
		"swapped": sumOf(body[block:2*block], body[:block], body[2*block:]),
		"lost":    sumOf(body[:2*block], body[3*block:]),
		"short":   sumOf(body[:size-1]),
	} {
		if other == want {
			t.Errorf("a body with a part that is %s has the same sum", what)
		}
	}
}
