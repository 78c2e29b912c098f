package sandbox

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// testVariable names the top-level test that a sandbox is for.
const testVariable = "HATCH_SANDBOX_TEST"

// RunTests runs the tests of a package in sandboxes, as many at the same time as
// the machine has CPUs: each of the named top-level tests in a sandbox of its own,
// in their order. The one that takes longest should come first.
// Emulated guests use all of a CPU, and more of them at a time would only make
// their boots miss the limits of the tests. A top-level test that is not named runs
// in every sandbox. It returns the exit code for TestMain.
func RunTests(m interface{ Run() int }, names ...string) int {
	if os.Getenv(stageVariable) != "" {
		return Run(func() int { return runOne(m, names) })
	}
	// Where tests leave no such log, go test keeps no result: it cannot know
	// whether hatchd or an image has changed.
	args := slices.DeleteFunc(slices.Clone(os.Args), func(arg string) bool { return strings.HasPrefix(arg, "-test.testlogfile=") })
	out := newMerger(os.Stdout, len(names))
	codes := make([]int, len(names))
	var running sync.WaitGroup
	slots := make(chan struct{}, runtime.NumCPU())
	for i, name := range names {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			began, w := time.Now(), out.parts[i]
			child := &exec.Cmd{Args: args, Env: []string{testVariable + "=" + name}, Stdout: w, Stderr: w}
			var err error
			if codes[i], err = enter(child); err != nil {
				codes[i] = 1
				fmt.Fprintln(w, "sandbox:", err)
			} else if cpu := child.ProcessState.UserTime() + child.ProcessState.SystemTime(); !w.empty {
				fmt.Fprintf(w, "sandbox of %s: %.0f s, %.0f s of CPU\n", name, time.Since(began).Seconds(), cpu.Seconds())
			}
			out.end(i)
		})
	}
	running.Wait()
	return out.verdict(slices.Max(codes))
}

// runOne runs the test that this sandbox is for.
func runOne(m interface{ Run() int }, names []string) int {
	flag.Parse()
	var skip []string
	if asked := flag.Lookup("test.skip").Value.String(); asked != "" {
		skip = append(skip, asked)
	}
	for _, name := range names {
		if name != os.Getenv(testVariable) {
			skip = append(skip, "^"+name+"$")
		}
	}
	if err := flag.Set("test.skip", strings.Join(skip, "|")); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		return 1
	}
	return m.Run()
}

// merger writes the output of several test programs as if it were that of one:
// that of the first at once, that of the others when those before have ended.
type merger struct {
	mu    sync.Mutex
	to    io.Writer
	parts []*part
	next  int // the part whose output is written at once
}

// part is the output of one program.
type part struct {
	*merger
	held  []byte // complete lines that wait for their turn
	line  []byte // the last line, which has not ended
	ended bool
	empty bool // the program has run no test
}

func newMerger(to io.Writer, parts int) *merger {
	m := &merger{to: to}
	for range parts {
		m.parts = append(m.parts, &part{merger: m})
	}
	return m
}

// noTests is what a test program says that has run no test.
const noTests = "testing: warning: no tests to run"

// Write implements io.Writer. It drops the lines by which a program says how it
// has ended.
func (p *part) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.line = append(p.line, b...)
	for {
		i := bytes.IndexByte(p.line, '\n')
		if i < 0 {
			break
		}
		switch strings.TrimPrefix(string(p.line[:i]), "\x16") { // that is how -v=test2json marks lines
		case noTests:
			p.empty = true
		case "PASS", "FAIL":
		default:
			p.held = append(p.held, p.line[:i+1]...)
		}
		p.line = p.line[i+1:]
	}
	return len(b), p.flush()
}

// flush writes what may be written now.
func (m *merger) flush() (err error) {
	for ; err == nil && m.next < len(m.parts); m.next++ {
		p := m.parts[m.next]
		_, err = m.to.Write(p.held)
		p.held = nil
		if !p.ended {
			break
		}
	}
	return err
}

func (m *merger) end(i int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.parts[i]
	p.held, p.line, p.ended = append(p.held, p.line...), nil, true
	_ = m.flush() // nothing is left to do without a standard output
}

// verdict writes how all of them have ended, and returns code.
func (m *merger) verdict(code int) int {
	if !slices.ContainsFunc(m.parts, func(p *part) bool { return !p.empty }) {
		fmt.Fprintln(m.to, noTests)
	}
	fmt.Fprintln(m.to, map[bool]string{true: "PASS", false: "FAIL"}[code == 0])
	return code
}
