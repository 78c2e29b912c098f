package guest

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hatchvm/hatch/internal/vm"
)

// TestReportsAreLimited has a hostile agent that again and again sends a new report and
// loses its session.
func TestReportsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var at []time.Duration
		r := newReporter(func(*vm.GuestReport) { at = append(at, time.Since(began)) })
		for i := 0; time.Since(began) < time.Hour; i++ {
			if err := r.send(t.Context(), nil, &vm.GuestReport{BootID: strconv.Itoa(i)}); err != nil {
				t.Fatal(err)
			}
			if err := r.send(t.Context(), nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		if at[0] != 0 || at[reportBurst-1] > 2*reportBurst*reportInterval {
			t.Errorf("the first report waited %v, the last of a burst %v", at[0], at[reportBurst-1])
		}
		for i := 1; i < len(at); i++ {
			if at[i]-at[i-1] < reportInterval {
				t.Fatalf("reports %d and %d came %v apart", i-1, i, at[i]-at[i-1])
			}
		}
		if most := reportBurst + int(time.Hour/reportRefill) + 3; len(at) > most {
			t.Errorf("%d reports in an hour, want at most %d", len(at), most)
		}
	})
}

func TestEqualReportIsDropped(t *testing.T) {
	seen := 0
	r := newReporter(func(*vm.GuestReport) { seen++ })
	for _, report := range []*vm.GuestReport{{BootID: "a"}, {BootID: "a"}, nil, nil, {BootID: "a"}} {
		if err := r.send(t.Context(), nil, report); err != nil {
			t.Fatal(err)
		}
	}
	if seen != 3 {
		t.Errorf("%d reports were passed on, want 3", seen)
	}
}

func TestReportThatWaitsIsDroppedWithItsSession(t *testing.T) {
	seen := 0
	r := newReporter(func(*vm.GuestReport) { seen++ })
	if err := r.send(t.Context(), nil, &vm.GuestReport{}); err != nil {
		t.Fatal(err)
	}
	lost := make(chan struct{})
	close(lost)
	if err := r.send(t.Context(), lost, nil); !errors.Is(err, errLost) {
		t.Errorf("a lost session: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.send(ctx, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a closed session: %v", err)
	}
	if seen != 1 {
		t.Errorf("%d reports were passed on, want 1", seen)
	}
}
