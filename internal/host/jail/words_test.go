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

// listen copies what is written to the pipe that it returns.
func listen(t *testing.T, rest func(context.Context)) (w *Words, pipe *os.File, path string) {
	t.Helper()
	r, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "words")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	return copyWords(r, file, 0, rest, "in vain"), pipe, path
}

func TestWhoSaysTooMuchIsReadSlowly(t *testing.T) {
	for name, tc := range map[string]struct {
		line  string
		bytes int
		rests int
	}{
		"what is kept":      {"it is so\n", MaxWords, 0},
		"what is too much":  {"it is so\n", MaxWords + 3*restEvery, 3},
		"what says nothing": {"tried in vain\n", 3 * restEvery, 3},
	} {
		t.Run(name, func(t *testing.T) {
			rests := 0
			w, pipe, path := listen(t, func(context.Context) { rests++ })
			defer w.Close()
			lines := tc.bytes/len(tc.line) + 1
			if tc.rests == 0 {
				lines--
			}
			if _, err := pipe.WriteString(strings.Repeat(tc.line, lines) + "the end"); err != nil {
				t.Fatal(err)
			}
			if err := pipe.Close(); err != nil {
				t.Fatal(err)
			}
			if end := w.AtEnd(); end != "the end" || rests != tc.rests {
				t.Errorf("rested %d times, want %d; the end is %q", rests, tc.rests, end)
			}
			if st, err := os.Stat(path); err != nil || st.Size() > MaxWords {
				t.Errorf("kept: %v, %v", st, err)
			}
		})
	}
}

func TestCloseEndsARest(t *testing.T) {
	resting := make(chan struct{})
	w, pipe, _ := listen(t, func(ctx context.Context) {
		close(resting)
		<-ctx.Done()
	})
	var writer sync.WaitGroup
	writer.Go(func() {
		for { // until nobody listens
			if _, err := pipe.WriteString("tried in vain\n"); err != nil {
				return
			}
		}
	})
	<-resting
	w.Close()
	writer.Wait()
	_ = pipe.Close()
}
