package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// TestOutputIsKeptInOrder writes pieces of many sizes and reads them back.
func TestOutputIsKeptInOrder(t *testing.T) {
	var o output
	var wrote, read bytes.Buffer
	kept := int64(0)
	for i := range 2000 {
		piece := bytes.Repeat([]byte{byte(i)}, i%97*(i%7))
		kept += o.append(i%3 == 0, piece)
		wrote.Write(piece)
	}
	for at := int64(0); at < o.end; {
		_, data, lost := o.read(at)
		if lost != 0 || len(data) == 0 {
			t.Fatalf("at %d: %d bytes, %d lost", at, len(data), lost)
		}
		read.Write(data)
		at += int64(len(data))
	}
	if !bytes.Equal(read.Bytes(), wrote.Bytes()) {
		t.Error("what is read is not what was written")
	}
	if kept != o.kept || kept < int64(wrote.Len()) {
		t.Errorf("%d bytes in %d of memory, or %d", wrote.Len(), o.kept, kept)
	}
	for len(o.chunks) > 1 {
		kept -= o.drop()
	}
	first := o.chunks[0].start
	if _, data, lost := o.read(10); data != nil || lost != first-10 {
		t.Errorf("%d bytes and %d lost, want %d", len(data), lost, first-10)
	}
	if kept -= o.drop(); kept != 0 || o.kept != 0 {
		t.Errorf("no output needs %d bytes, or %d", o.kept, kept)
	}
	if _, data, lost := o.read(3); data != nil || lost != o.end-3 {
		t.Errorf("without chunks: %d bytes and %d lost", len(data), lost)
	}
}

func TestSmallPiecesCostTheirChunks(t *testing.T) {
	var o output
	for i := range 1000 {
		o.append(i%2 == 0, []byte("x"))
	}
	if o.kept < 1000*overhead {
		t.Errorf("1000 chunks cost %d bytes", o.kept)
	}
}

// TestOutputWithoutReaders has a process write more than maxKept.
func TestOutputWithoutReaders(t *testing.T) {
	table := newTable(t)
	p, err := table.StartProcess(spec("head -c 3000000 /dev/zero; echo the end"))
	if err != nil {
		t.Fatal(err)
	}
	id := p.Spec.ID
	_, r, err := table.AttachProcess(id, 0)
	for err == nil && !ended(table, id) {
		r.Close() // with a reader, the process would wait
		_, r, err = table.AttachProcess(id, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	got := readAll(t, r) // the kept output, and the rest of the pipe
	r.Close()
	if !strings.HasSuffix(got.stdout, "the end\n") || got.lost+int64(len(got.stdout)) != 3000008 || len(got.stdout) > maxKept+4*maxAhead || len(got.stdout) < maxKept/2 {
		t.Errorf("%d bytes and %d lost", len(got.stdout), got.lost)
	}
	_, _, err = table.AttachProcess(id, 3000009)
	requireCode(t, err, wire.CodeOffset)
	_, r, err = table.AttachProcess(id, 3000004)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got := readAll(t, r); got.stdout != "end\n" || got.lost != 0 {
		t.Errorf("from an offset: %+v", got)
	}
}

func ended(table *Table, id string) bool {
	p, err := table.Process(id)
	return err == nil && p.Exit != nil
}

// TestReadersGetAllOutput attaches several readers.
func TestReadersGetAllOutput(t *testing.T) {
	table := newTable(t)
	s := spec("read go; head -c 5000000 /dev/zero; echo the end >&2")
	s.Stdin = true
	p, err := table.StartProcess(s)
	if err != nil {
		t.Fatal(err)
	}
	results := make(chan *seen, 3)
	for range cap(results) {
		_, r, err := table.AttachProcess(p.Spec.ID, 0)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer r.Close()
			results <- readAll(t, r)
		}()
	}
	if _, err := table.WriteProcess(t.Context(), p.Spec.ID, []byte("\n")); err != nil {
		t.Fatal(err)
	}
	for range cap(results) {
		if got := <-results; len(got.stdout) != 5000000 || got.lost != 0 || got.stderr != "the end\n" {
			t.Errorf("%d bytes, %d lost, %q", len(got.stdout), got.lost, got.stderr)
		}
	}
}

func TestProcessWaitsForItsReaderUntilThatCloses(t *testing.T) {
	table := newTable(t)
	p, r, err := table.ExecProcess(spec("head -c 5000000 /dev/zero"))
	if err != nil {
		t.Fatal(err)
	}
	full := time.After(10 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	last := int64(-1)
	for { // until it writes no more
		<-tick.C
		now, err := table.Process(p.Spec.ID)
		if err != nil || now.Exit != nil {
			t.Fatalf("it did not wait: %+v, %v", now, err)
		}
		if now.Output == last && last >= maxAhead {
			break
		}
		last = now.Output
		select {
		case <-full:
			t.Fatalf("it wrote %d bytes", last)
		default:
		}
	}
	if last > 2*maxAhead {
		t.Errorf("it is %d bytes ahead", last)
	}
	r.Close()
	_, again, err := table.AttachProcess(p.Spec.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got := readAll(t, again); int64(len(got.stdout))+got.lost != 5000000 {
		t.Errorf("%d bytes and %d lost", len(got.stdout), got.lost)
	}
}

// TestAvailableOutputIsReadAfterItsDeadline reads a pipe whose deadline has passed, as
// after a pause of the guest.
func TestAvailableOutputIsReadAfterItsDeadline(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	const size = 60000 // less than a pipe holds, and more than one read returns
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	raw, err := r.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, wait := range []time.Duration{0, time.Millisecond} {
		got := 0
		if err := readLast(r, raw, wait, func(b []byte) { got += len(b) }); err != nil {
			t.Fatal(err)
		}
		if want := map[bool]int{true: size}[wait == 0]; got != want {
			t.Errorf("read %d bytes of %d, with the timeout %v", got, want, wait)
		}
	}
}

func TestNextEndsWithItsContext(t *testing.T) {
	table := newTable(t)
	_, r, err := table.ExecProcess(spec("sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	idled := 0
	_, err = r.Next(ctx, func() error { idled++; cancel(); return nil })
	if !errors.Is(err, context.Canceled) || idled != 1 {
		t.Errorf("%v after %d idles", err, idled)
	}
	stuck := errors.New("stuck")
	if _, err := r.Next(t.Context(), func() error { return stuck }); !errors.Is(err, stuck) {
		t.Errorf("got %v", err)
	}
}

// TestOutputOfAllProcessesIsLimited has a lower limit than the output of its processes.
func TestOutputOfAllProcessesIsLimited(t *testing.T) {
	table := newTable(t)
	table.limit = 2 << 20
	var ids []string
	for range 5 {
		p, got := table.exec(t, spec("head -c 900000 /dev/zero"))
		if len(got.stdout) != 900000 {
			t.Errorf("a reader got %d bytes", len(got.stdout))
		}
		ids = append(ids, p.Spec.ID)
	}
	table.mu.Lock()
	kept, sum := table.kept, int64(0)
	for _, p := range table.processes {
		sum += p.out.kept
	}
	table.mu.Unlock()
	if kept > table.limit || kept != sum || kept < table.limit/2 {
		t.Errorf("%d bytes are kept, or %d, of %d", kept, sum, table.limit)
	}
	for _, id := range ids {
		if err := table.RemoveProcess(id); err != nil {
			t.Error(err)
		}
	}
	if table.kept != 0 {
		t.Errorf("%d bytes are kept of removed processes", table.kept)
	}
}

func TestOldEndedProcessesAreRemoved(t *testing.T) {
	table := newTable(t)
	running, err := table.StartProcess(spec("sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	first, r, err := table.ExecProcess(spec("echo read late"))
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := table.AttachProcess(first.Spec.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	readAll(t, other) // it has ended before the processes below
	other.Close()
	second, _ := table.exec(t, spec("true"))
	for range maxEnded {
		s := spec("")
		s.Argv = []string{"no-such-command-here"}
		if _, err := table.StartProcess(s); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := table.Process(running.Spec.ID); err != nil {
		t.Error(err)
	}
	_, err = table.Process(second.Spec.ID)
	requireCode(t, err, wire.CodeNoProcess)
	if got := readAll(t, r); got.stdout != "read late\n" || got.exit == nil {
		t.Errorf("a process with a reader: %+v", got)
	}
	r.Close()
	_, err = table.Process(first.Spec.ID)
	requireCode(t, err, wire.CodeNoProcess)
	all := table.Processes()
	if len(all) != maxEnded+1 || all[len(all)-1].Spec.ID != running.Spec.ID {
		t.Errorf("%d processes are left, the oldest is %s", len(all), all[len(all)-1].Spec.ID)
	}
}

// TestRecentProcessesAreKept has more ended processes than are kept for long, and then
// more than are kept at all.
func TestRecentProcessesAreKept(t *testing.T) {
	table := newTable(t)
	table.recentAge = time.Hour
	for _, c := range []struct{ more, left int }{{maxEnded + 10, maxEnded + 10}, {maxRecent, maxRecent}} {
		for range c.more {
			s := spec("")
			s.Argv = []string{"no-such-command-here"}
			if _, err := table.StartProcess(s); err != nil {
				t.Fatal(err)
			}
		}
		if left := len(table.Processes()); left != c.left {
			t.Errorf("%d processes are left, want %d", left, c.left)
		}
	}
	table.recentAge = 0
	if _, got := table.exec(t, spec("true")); got.exit == nil {
		t.Error("it has not ended")
	}
	if left := len(table.Processes()); left > maxEnded+1 {
		t.Errorf("%d processes are left when they are old", left)
	}
}

func TestRunningProcessesAreLimited(t *testing.T) {
	table := newTable(t)
	table.running = maxRunning
	_, err := table.StartProcess(spec("true"))
	requireCode(t, err, wire.CodeManyProcesses)
	table.running = 0
	s := spec("sleep 1000")
	if _, err := table.StartProcess(s); err != nil {
		t.Fatal(err)
	}
	_, err = table.StartProcess(s)
	requireCode(t, err, wire.CodeInvalid)
}

// TestManyExecsLeaveNothing runs a thousand in a row and fifty at a time.
func TestManyExecsLeaveNothing(t *testing.T) {
	table := newTable(t)
	one := func(i int) error {
		s := wire.ProcessSpec{ID: fmt.Sprintf("exec_many%08d", i), Argv: []string{"sh", "-c", fmt.Sprintf("echo %d", i)}, User: self(), Stdin: i%2 == 0}
		_, r, err := table.ExecProcess(s)
		if err != nil {
			return err
		}
		defer r.Close()
		if got := readAll(t, r); got.stdout != fmt.Sprintf("%d\n", i) || got.exit.Code != 0 {
			return fmt.Errorf("%d: %+v, %+v", i, got, got.exit)
		}
		return nil
	}
	if err := one(0); err != nil {
		t.Fatal(err)
	}
	before := descriptors(t)
	for i := range 500 {
		if err := one(1 + i); err != nil {
			t.Fatal(err)
		}
	}
	results := make(chan error)
	for i := range 50 {
		go func() {
			for k := range 10 {
				if err := one(1000 + 10*i + k); err != nil {
					results <- err
					return
				}
			}
			results <- nil
		}()
	}
	for range 50 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	_ = table.Close() // waits for the goroutines of the last processes
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors became %d", before, after)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
