package files

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// watched collects the changes that a watch reports, as kinds with paths below its top.
type watched struct {
	top   string
	ended chan error

	mu   sync.Mutex
	seen []string
	more chan struct{} // closed and replaced at each report
	gate chan struct{} // reports wait for it unless it is nil
}

func startWatch(t *testing.T, top string, recursive bool) *watched {
	t.Helper()
	w := &watched{top: top, ended: make(chan error, 1), more: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	began, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		args := wire.WatchFilesArgs{Path: []byte(top), Recursive: recursive}
		w.ended <- New("/").WatchFiles(ctx, args, func() error { close(began); return nil }, w.report)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	<-began
	return w
}

func (w *watched) report(changes []wire.FileChange) error {
	w.mu.Lock()
	gate := w.gate
	w.mu.Unlock()
	if gate != nil {
		<-gate
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range changes {
		text := c.Kind + " " + strings.TrimPrefix(string(c.Path), w.top)
		if c.Kind == wire.ChangeRename {
			text = c.Kind + " " + strings.TrimPrefix(string(c.From), w.top) + " " + strings.TrimPrefix(string(c.Path), w.top)
		}
		w.seen = append(w.seen, text)
	}
	close(w.more)
	w.more = make(chan struct{})
	return nil
}

// until waits for a change, and returns all changes up to it.
func (w *watched) until(t *testing.T, last string) []string {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		w.mu.Lock()
		seen, more := w.seen, w.more
		if at := slices.Index(seen, last); at >= 0 {
			w.seen = seen[at+1:]
			w.mu.Unlock()
			return seen[:at+1]
		}
		w.mu.Unlock()
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("%q is not among %q", last, seen)
		}
	}
}

func (w *watched) require(t *testing.T, want ...string) {
	t.Helper()
	if got := w.until(t, want[len(want)-1]); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestWatchReportsChanges(t *testing.T) {
	top, elsewhere := t.TempDir(), t.TempDir()
	mkdir(t, top+"/sub")
	w := startWatch(t, top, true)

	add(t, top+"/sub/f\xff", "x")
	w.require(t, "create /sub/f\xff", "write /sub/f\xff")
	rename(t, top+"/sub/f\xff", top+"/g")
	w.require(t, "rename /sub/f\xff /g")
	if err := os.Chmod(top+"/g", 0o600); err != nil {
		t.Fatal(err)
	}
	w.require(t, "chmod /g")
	rename(t, top+"/g", elsewhere+"/g")
	w.require(t, "remove /g")
	rename(t, elsewhere+"/g", top+"/sub/g")
	w.require(t, "create /sub/g")
	if err := os.RemoveAll(top + "/sub"); err != nil {
		t.Fatal(err)
	}
	w.require(t, "remove /sub/g", "remove /sub")
	if err := os.Remove(top); err != nil {
		t.Fatal(err)
	}
	w.require(t, "remove ")
	requireRefusal(t, <-w.ended, wire.CodeNotFound)
}

func TestWatchJoinsWrites(t *testing.T) {
	top := t.TempDir()
	put(t, top+"/f", "")
	w := startWatch(t, top, false)
	f, err := os.OpenFile(top+"/f", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2000 {
		if _, err := f.WriteString("x"); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	put(t, top+"/end", "")
	if got := w.until(t, "create /end"); len(got) > 200 || got[0] != "write /f" {
		t.Errorf("%d changes: %.100q", len(got), got)
	}
}

// TestWatchReportsAllFilesInNewDirectories creates trees as fast as it can.
func TestWatchReportsAllFilesInNewDirectories(t *testing.T) {
	top := t.TempDir()
	w := startWatch(t, top, true)
	want := map[string]int{}
	for i := range 50 {
		path := top
		for _, name := range []string{fmt.Sprint(i), "a", "b"} {
			path += "/" + name
			mkdir(t, path)
			put(t, path+"/f", "")
			want["create "+strings.TrimPrefix(path, top)]++
			want["create "+strings.TrimPrefix(path, top)+"/f"]++
		}
	}
	put(t, top+"/end", "")
	got := map[string]int{}
	for _, text := range w.until(t, "create /end") {
		got[text]++
	}
	for text, n := range want {
		if got[text] != n {
			t.Errorf("%q was seen %d times", text, got[text])
		}
	}
}

func TestWatchFollowsRenamedDirectories(t *testing.T) {
	top, elsewhere := t.TempDir(), t.TempDir()
	put(t, top+"/a/b/f", "")
	put(t, top+"/ab/f", "")
	w := startWatch(t, top, true)
	rename(t, top+"/a", top+"/z")
	w.require(t, "rename /a /z")
	add(t, top+"/z/b/f", "x")
	add(t, top+"/ab/f", "x")
	w.require(t, "write /z/b/f", "write /ab/f")
	rename(t, top+"/z", elsewhere+"/z")
	w.require(t, "remove /z")
	add(t, elsewhere+"/z/b/f", "x") // no longer watched
	rename(t, elsewhere+"/z", top+"/back")
	w.require(t, "create /back", "create /back/b", "create /back/b/f")
	add(t, top+"/back/b/f", "x")
	w.require(t, "write /back/b/f")
}

func TestWatchOfAFileSurvivesItsReplacement(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/f"
	put(t, path, "old")
	w := startWatch(t, path, false)
	put(t, dir+"/other", "")
	add(t, path, "x")
	w.require(t, "write ")
	put(t, dir+"/new", "")
	rename(t, dir+"/new", path)
	w.require(t, "create ")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	w.require(t, "remove ")
	put(t, path, "x")
	w.require(t, "create ", "write ")
}

// TestWatchReportsLostEvents blocks reports while the kernel's queue of events
// overflows.
func TestWatchReportsLostEvents(t *testing.T) {
	top := t.TempDir()
	w := startWatch(t, top, true)
	gate := make(chan struct{})
	w.mu.Lock()
	w.gate = gate
	w.mu.Unlock()
	limit, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscan(string(limit), &n); err != nil {
		t.Fatal(err)
	}
	for i := range n/2 + 2*maxBatch {
		path := fmt.Sprintf("%s/%d", top, i)
		put(t, path, "")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	mkdir(t, top+"/late")
	w.mu.Lock()
	w.gate = nil
	w.mu.Unlock()
	close(gate)
	w.until(t, "missed ")
	put(t, top+"/late/f", "")
	w.until(t, "create /late/f")
}

func TestWatchIsLimited(t *testing.T) {
	n, err := newInotify()
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	w := &watcher{inotify: n, dirs: map[int32]string{}, scanned: map[string]bool{}}
	for i := range int32(maxWatches) {
		w.dirs[-i-1] = "x"
	}
	requireRefusal(t, w.addTree(t.Context(), t.TempDir(), func(string) {}), wire.CodeTooManyWatches)
}

func TestEventsAreParsed(t *testing.T) {
	raw := binary.NativeEndian.AppendUint32(nil, 7)
	raw = binary.NativeEndian.AppendUint32(raw, unix.IN_CREATE)
	raw = binary.NativeEndian.AppendUint32(raw, 9)
	raw = binary.NativeEndian.AppendUint32(raw, 16)
	raw = append(raw, "name\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	want := event{wd: 7, mask: unix.IN_CREATE, cookie: 9, name: "name"}
	if got := parseEvents(append(raw, raw...)); !slices.Equal(got, []event{want, want}) {
		t.Errorf("got %+v", got)
	}
	if got := parseEvents(raw[:len(raw)-1]); got != nil {
		t.Errorf("from an incomplete event: %+v", got)
	}
}

func FuzzEvents(f *testing.F) {
	f.Add(make([]byte, 40))
	f.Add([]byte(strings.Repeat("\xff", 33)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		total := 0
		for _, e := range parseEvents(raw) {
			total += unix.SizeofInotifyEvent + len(e.name)
		}
		if total > len(raw) {
			t.Errorf("%d bytes of %d", total, len(raw))
		}
	})
}

func TestWatchEndsWhenAReportFails(t *testing.T) {
	top := t.TempDir()
	gone := errors.New("gone")
	ended := make(chan error, 1)
	began := make(chan struct{})
	go func() {
		args := wire.WatchFilesArgs{Path: []byte(top)}
		ended <- New("/").WatchFiles(context.Background(), args, func() error { close(began); return nil }, func([]wire.FileChange) error { return gone })
	}()
	<-began
	put(t, top+"/f", "")
	if err := <-ended; !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
}
