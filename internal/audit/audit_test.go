package audit

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a Store that can be told to fail.
type memory struct {
	mu     sync.Mutex
	fails  error
	stored []Record
	pruned int
}

func (m *memory) AppendAudit(_ context.Context, records []Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fails == nil {
		m.stored = append(m.stored, records...)
	}
	return m.fails
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fails = err
}

func (m *memory) all() []Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stored
}

func (*memory) LastAudit(context.Context) (int64, error)               { return 1 << 60, nil }
func (*memory) AuditRecords(context.Context, Filter) ([]Record, error) { return nil, nil }
func (*memory) OwnerOfVM(context.Context, string) (string, error)      { return "acc_a", nil }
func (*memory) PruneAuditOver(context.Context, int, int) (int, error)  { return 0, nil }
func (m *memory) PruneOldAudit(context.Context, time.Time, int) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pruned++
	return 0, nil
}

func run(t *testing.T, test func(t *testing.T, s *Service, m *memory)) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		s, err := Open(t.Context(), m, Limits{Keep: time.Hour, Total: 1000}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		test(t, s, m)
	})
}

// A clean stop loses nothing, and numbers go on after the highest one.
func TestRecordsAreStored(t *testing.T) {
	run(t, func(t *testing.T, s *Service, m *memory) {
		for i := range 3 * maxBatch {
			s.Add(Record{Operation: strconv.Itoa(i), UserID: "u"})
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for i, r := range m.all() {
			if r.Operation != strconv.Itoa(i) || r.Seq != 1<<60+1+int64(i) || r.Count != 1 || r.At.IsZero() {
				t.Fatalf("record %d is %+v", i, r)
			}
		}
		if len(m.all()) != 3*maxBatch || m.pruned == 0 {
			t.Errorf("%d records, pruned %d times", len(m.all()), m.pruned)
		}
	})
}

// Without a database records wait, up to a bound; what did not fit is counted, and Check
// says so meanwhile.
func TestRecordsWaitForTheDatabase(t *testing.T) {
	run(t, func(t *testing.T, s *Service, m *memory) {
		m.fail(errors.New("the disk is full"))
		for range maxWaiting + 7 {
			s.Add(Record{Operation: "op", UserID: "u"})
		}
		synctest.Wait()
		if s.Check() == nil {
			t.Error("nothing is reported")
		}
		m.fail(nil)
		<-time.After(longRetry)
		synctest.Wait()
		all := m.all()
		if last := all[len(all)-1]; s.Check() != nil || len(all) != maxWaiting+1 || last.Operation != Gap || last.Count != 7 {
			t.Errorf("%v; %d records, the last one %+v", s.Check(), len(all), last)
		}
	})
}

// A port scan leaves a bounded number of records, which add up to all of it.
func TestAScanLeavesAFewRecords(t *testing.T) {
	run(t, func(t *testing.T, s *Service, m *memory) {
		const scans = 50_000
		for i := range scans {
			s.AddBounded(Record{Operation: SSHSession, Noun: "vm", Object: "vm_" + strconv.Itoa(i%3000), Address: "192.0.2." + strconv.Itoa(i%200), Bytes: 2})
		}
		<-time.After(window)
		synctest.Wait()
		var sum, bytes int64
		for _, r := range m.all() {
			sum, bytes = sum+r.Count, bytes+r.Bytes
		}
		if n := len(m.all()); n > maxSingles+maxGroups+1 || sum != scans || bytes != 2*scans {
			t.Errorf("%d records for %d connections with %d bytes", n, sum, bytes)
		}
		if m.all()[0].OwnerID != "acc_a" {
			t.Errorf("the owner of the VM does not see %+v", m.all()[0])
		}
	})
}

func TestARecordIsBounded(t *testing.T) {
	r := Record{Code: string(make([]byte, 5000)), UserName: "u"}.cut()
	if len(r.Code) != maxText || r.UserName != "u" {
		t.Errorf("%d bytes", len(r.Code))
	}
}
