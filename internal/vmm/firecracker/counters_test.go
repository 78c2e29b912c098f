//go:build linux && amd64

package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/vmm"
)

const someMetrics = `{"block":{"read_bytes":1,"write_bytes":20,"read_count":300,"write_count":4000},` +
	`"balloon":{"stats_updates_count":50,"stats_update_fails":6}}`

// openMachine returns a machine whose pipes are in dir, and the process's ends of
// them.
func openMachine(t *testing.T, dir string) (m *machine, metrics, stderr *os.File) {
	t.Helper()
	open := func(name string) *os.File {
		path := filepath.Join(dir, name)
		if err := makePipe(path); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	metrics, stderr = open(metricsPipe+".pipe"), open(logPipe+".pipe")
	open(stdoutPipe)
	m = &machine{}
	if err := m.openPipes(dir); err != nil {
		t.Fatal(errors.Join(err, m.closePipes()))
	}
	t.Cleanup(func() {
		if err := m.closePipes(); err != nil {
			t.Error(err)
		}
	})
	return m, metrics, stderr
}

func TestMetricsAreReadAfterALineThatIsTooLong(t *testing.T) {
	m, metrics, _ := openMachine(t, t.TempDir())
	for _, line := range []string{someMetrics, strings.Repeat("x", 5*maxMetrics), "[]", someMetrics} {
		t.Run(fmt.Sprint(len(line)), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			_, err := m.counters.afterFlush(ctx, func() error {
				_, err := io.WriteString(metrics, line+"\n")
				return err
			})
			cancel()
			if err != nil {
				t.Fatalf("after a line of %d bytes: %v", len(line), err)
			}
		})
	}
	want := counts{
		BlockCounters: vmm.BlockCounters{ReadBytes: 2, WriteBytes: 40, ReadOps: 600, WriteOps: 8000},
		MemoryReports: 100, MemoryFailures: 12,
	}
	m.counters.mu.Lock()
	defer m.counters.mu.Unlock()
	if m.counters.sum != want {
		t.Errorf("counted %+v, want %+v", m.counters.sum, want)
	}
}

func TestErrorsOfDisksAreNoNewsToTheNextDaemon(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, countersFile), []byte(`{"DiskErrors":7}`), 0o600); err != nil {
		t.Fatal(err)
	}
	m, _, _ := openMachine(t, dir)
	before := m.counters.diskErrors()
	m.counters.add([]byte(`{"block":{"invalid_reqs_count":2}}`))
	if after := m.counters.diskErrors(); before != 0 || after != 2 {
		t.Errorf("there are %d errors, then %d; want 0, then 2", before, after)
	}
}

// A process cannot fill the host's disk with its output.
func TestOutputIsBounded(t *testing.T) {
	dir := t.TempDir()
	m, metrics, stderr := openMachine(t, dir)
	line := strings.Repeat("w", 1023) + "\n"
	for range 4 * jail.MaxOutput / len(line) {
		if _, err := io.WriteString(stderr, line); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		if _, err := io.WriteString(metrics, someMetrics+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.counters.afterFlush(t.Context(), func() error {
		_, err := io.WriteString(metrics, someMetrics+"\n")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	m.counters.close()
	m.stderr.Close()
	for name, most := range map[string]int64{vmm.LogName: jail.MaxOutput, countersFile: 1 << 10} {
		t.Run(name, func(t *testing.T) {
			st, err := os.Stat(filepath.Join(dir, name))
			if err != nil || st.Size() == 0 || st.Size() > most {
				t.Errorf("%s: %+v, %v; want no more than %d bytes, and some", name, st, err, most)
			}
		})
	}
}
