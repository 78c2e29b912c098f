//go:build linux

package space

import (
	"errors"
	"log/slog"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func newReserve(t *testing.T) *Reserve {
	t.Helper()
	r := NewReserve(t.TempDir(), slog.New(slog.DiscardHandler))
	if r.Release() {
		t.Error("a reserve that was not made yet is released")
	}
	if err := r.Refill(); err != nil {
		t.Fatal(err)
	}
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAReserveHoldsBlocks(t *testing.T) {
	r := newReserve(t)
	for i := range reserveFiles {
		var st unix.Stat_t
		if err := unix.Stat(r.path(i), &st); err != nil || st.Blocks*512 < reserveBytes || st.Mode&0o777 != 0o600 {
			t.Errorf("file %d: %d blocks, mode %o, %v", i, st.Blocks, st.Mode, err)
		}
	}
}

func TestAReserveIsReleasedInPartsAndRefilled(t *testing.T) {
	r := newReserve(t)
	full, calls := &os.PathError{Op: "write", Err: unix.ENOSPC}, 0
	err := r.Do(func() error {
		if calls++; calls <= 2 {
			return full
		}
		return nil
	})
	if left, _ := os.ReadDir(r.dir); err != nil || calls != 3 || len(left) != reserveFiles-2 {
		t.Errorf("after %d calls (%v) the reserve has %d files, want 3 and %d", calls, err, len(left), reserveFiles-2)
	}
	if r.HasRoom() {
		t.Error("guests may write though the reserve is not whole")
	}
	if err := errors.Join(r.Refill(), r.Check()); err != nil {
		t.Error(err)
	}
}

func TestAReserveEnds(t *testing.T) {
	r := newReserve(t)
	calls := 0
	err := r.Do(func() error { calls++; return unix.ENOSPC })
	if !errors.Is(err, unix.ENOSPC) || calls != reserveFiles+1 {
		t.Errorf("%d calls: %v", calls, err)
	}
	if err := r.Do(func() error { calls++; return unix.EIO }); !errors.Is(err, unix.EIO) || calls != reserveFiles+2 {
		t.Errorf("another error is tried again: %d calls, %v", calls, err)
	}
}
