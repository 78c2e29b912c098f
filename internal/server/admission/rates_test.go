package admission

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

func TestRatesOfAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRates(map[Class]Rate{Writes: {PerSecond: 2, Burst: 4}})
		for left := 3; left >= 0; left-- {
			if s := r.Count("a", Writes); s.Wait != 0 || s.Left != left {
				t.Fatalf("%+v, want %d left", s, left)
			}
		}
		s := r.Count("a", Writes)
		if s.Wait != time.Second/2 || s.Full != 2*time.Second || s.Limit.Window() != 2*time.Second {
			t.Errorf("over the limit: %+v", s)
		}
		if r.Count("b", Writes).Wait != 0 || r.Count("a", Reads) != (Standing{}) {
			t.Error("another key, or a class without a limit, is refused")
		}
		<-time.After(s.Wait)
		if s := r.Count("a", Writes); s.Wait != 0 {
			t.Errorf("after the wait: %+v", s)
		}
	})
}

// However many keys come, the table stays bounded, and a key at its limit stays known.
func TestRatesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRates(map[Class]Rate{Reads: {PerSecond: 0.001, Burst: 2}})
		r.Count("greedy", Reads)
		r.Count("greedy", Reads)
		for i := range 2 * maxRated {
			r.Count(strconv.Itoa(i), Reads)
		}
		if len(r.by) > maxRated || r.Count("greedy", Reads).Wait == 0 {
			t.Errorf("%d entries; the key at its limit was forgotten", len(r.by))
		}
	})
}
