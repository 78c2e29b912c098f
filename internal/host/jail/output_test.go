//go:build linux

package jail

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// outputOf returns an output and the pipe to write it to.
func outputOf(t *testing.T, pause func(context.Context)) (o *Output, pipe *os.File, path string) {
	t.Helper()
	r, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "output")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	return copyOutput(r, file, 0, pause, "in vain"), pipe, path
}

func TestExcessOutputIsReadSlowly(t *testing.T) {
	for name, tc := range map[string]struct {
		line   string
		bytes  int
		pauses int
	}{
		"within the bound": {"it is so\n", MaxOutput, 0},
		"too much":         {"it is so\n", MaxOutput + 3*pauseEvery, 3},
		"ignored lines":    {"tried in vain\n", 3 * pauseEvery, 3},
	} {
		t.Run(name, func(t *testing.T) {
			pauses := 0
			o, pipe, path := outputOf(t, func(context.Context) { pauses++ })
			defer o.Close()
			lines := tc.bytes/len(tc.line) + 1
			if tc.pauses == 0 {
				lines--
			}
			if _, err := pipe.WriteString(strings.Repeat(tc.line, lines) + "the end"); err != nil {
				t.Fatal(err)
			}
			if err := pipe.Close(); err != nil {
				t.Fatal(err)
			}
			if end := o.LastLine(); end != "the end" || pauses != tc.pauses {
				t.Errorf("paused %d times, want %d; the end is %q", pauses, tc.pauses, end)
			}
			if st, err := os.Stat(path); err != nil || st.Size() > MaxOutput {
				t.Errorf("the file: %v, %v", st, err)
			}
		})
	}
}

func TestCloseEndsAPause(t *testing.T) {
	pausing := make(chan struct{})
	o, pipe, _ := outputOf(t, func(ctx context.Context) {
		close(pausing)
		<-ctx.Done()
	})
	var writer sync.WaitGroup
	writer.Go(func() {
		for { // until the pipe has no reader
			if _, err := pipe.WriteString("tried in vain\n"); err != nil {
				return
			}
		}
	})
	<-pausing
	o.Close()
	writer.Wait()
	_ = pipe.Close()
}
