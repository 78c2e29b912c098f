package store

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
)

func openFull(t *testing.T) (s *Store, grow func()) {
	t.Helper()
	s, err := Open(t.Context(), t.TempDir()+"/hatch.db", "host")
	noError(t, err)
	t.Cleanup(func() { noError(t, s.Close()) })
	limit := func(pages string) {
		_, err := s.writes.Exec("PRAGMA max_page_count = " + pages)
		noError(t, err)
	}
	limit("1") // SQLite makes it what the file has
	return s, func() { limit("100000") }
}

// fill stores more than one page has.
func fill(t *testing.T, s *Store) error {
	t.Helper()
	return s.write(t.Context(), func(tx *tx) error {
		_, err := tx.exec(t.Context(), "CREATE TABLE filler (text TEXT)")
		for i := 0; err == nil && i < 100; i++ {
			_, err = tx.exec(t.Context(), "INSERT INTO filler VALUES (?)", fmt.Sprintf("%01000d", i))
		}
		return err
	})
}

func TestAFullDiskIsToldAndOver(t *testing.T) {
	s, grow := openFull(t)
	if err := fill(t, s); !errs.HasCode(err, "disk_full") || errs.KindOf(err) != errs.Exhausted || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a write to a full disk: %v", err)
	}
	grow()
	noError(t, fill(t, s))
}

func TestRoomIsMadeForAWrite(t *testing.T) {
	s, grow := openFull(t)
	asked := 0
	s.OnFull(func() bool {
		if asked++; asked == 3 {
			grow()
		}
		return true
	})
	noError(t, fill(t, s))
	if asked != 3 {
		t.Errorf("room was made %d times, want 3", asked)
	}
}

func TestThereMayBeNoRoomToMake(t *testing.T) {
	s, _ := openFull(t)
	asked := 0
	s.OnFull(func() bool { asked++; return asked < 3 })
	if err := fill(t, s); !errs.HasCode(err, "disk_full") || asked != 3 {
		t.Errorf("after %d questions for room: %v", asked, err)
	}
}
