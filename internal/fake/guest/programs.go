package guest

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/process"
)

// Exit codes as a shell has them.
const (
	notInvocable = 126
	notFound     = 127
)

// machine is what a program gets of its process.
type machine struct{ p *proc }

// program is one command. It returns its exit code.
type program func(m *machine, out process.Channel, args []string) int

// programs returns the known programs by name.
func programs() map[string]program {
	return map[string]program{
		"bash": bash, "cat": cat, "echo": echo, "env": env, "exit": exit, "false": fail, "pwd": pwd, "seq": seq, "sh": shell,
		"sleep": sleep, "stty": stty, "true": succeed, "whoami": whoami, "yes": yes,
	}
}

// runLine runs the command line or argv of spec.
func runLine(m *machine, spec process.Spec) int {
	if spec.Shell != "" {
		return shell(m, process.Stdout, []string{"-c", spec.Shell})
	}
	return call(m, process.Stdout, spec.Argv, "")
}

// call runs one command; as starts its error messages.
func call(m *machine, out process.Channel, argv []string, as string) int {
	name := path.Base(argv[0])
	if strings.HasSuffix(argv[0], "/") || name == "tmp" {
		m.print(process.Stderr, as+argv[0]+": Permission denied\n")
		return notInvocable
	}
	run, found := programs()[name]
	if !found {
		m.print(process.Stderr, as+argv[0]+": not found\n")
		return notFound
	}
	return run(m, out, argv[1:])
}

// bash is a shell, also one that is interactive or begins a login.
func bash(m *machine, out process.Channel, args []string) int {
	for len(args) > 0 && (args[0] == "-l" || args[0] == "-i") {
		args = args[1:]
	}
	return shell(m, out, args)
}

// shell runs commands separated by ";", each with an optional ">&2".
func shell(m *machine, _ process.Channel, args []string) int {
	if len(args) < 2 || args[0] != "-c" {
		return cat(m, process.Stdout, nil)
	}
	code := 0
	for command := range strings.SplitSeq(args[1], ";") {
		out := process.Stdout
		if rest, redirected := strings.CutSuffix(strings.TrimSpace(command), ">&2"); redirected {
			command, out = rest, process.Stderr
		}
		words := strings.Fields(command)
		if len(words) == 0 {
			continue
		}
		if code = call(m, out, words, "sh: "); words[0] == "exit" || m.dead() {
			return code
		}
	}
	return code
}

func echo(m *machine, out process.Channel, args []string) int {
	m.print(out, strings.Join(args, " ")+"\n")
	return 0
}

func cat(m *machine, out process.Channel, _ []string) int {
	for {
		data, more := m.read()
		if !more {
			return 0
		}
		m.print(out, string(data))
	}
}

func exit(_ *machine, _ process.Channel, args []string) int {
	if len(args) == 0 {
		return 0
	}
	code, err := strconv.ParseUint(args[0], 10, 8)
	if err != nil {
		return 2
	}
	return int(code)
}

func succeed(*machine, process.Channel, []string) int { return 0 }
func fail(*machine, process.Channel, []string) int    { return 1 }

func env(m *machine, out process.Channel, _ []string) int {
	for _, name := range slices.Sorted(maps.Keys(m.p.env)) {
		m.print(out, name+"="+m.p.env[name]+"\n")
	}
	return 0
}

func pwd(m *machine, out process.Channel, _ []string) int {
	dir := m.p.spec.Dir
	if dir == "" {
		dir = "/root"
	}
	m.print(out, dir+"\n")
	return 0
}

func whoami(m *machine, out process.Channel, _ []string) int {
	user, _, _ := strings.Cut(m.p.spec.User, ":")
	if user == "" || user == "0" {
		user = "root"
	}
	m.print(out, user+"\n")
	return 0
}

func sleep(m *machine, _ process.Channel, args []string) int {
	seconds := 0.0
	if len(args) > 0 {
		seconds, _ = strconv.ParseFloat(args[0], 64)
	}
	m.sleep(time.Duration(seconds * float64(time.Second)))
	return 0
}

// seq prints the numbers up to its argument.
func seq(m *machine, out process.Channel, args []string) int {
	last := 0
	if len(args) > 0 {
		last, _ = strconv.Atoi(args[0])
	}
	for n := 1; n <= last && !m.dead(); n++ {
		m.print(out, strconv.Itoa(n)+"\n")
	}
	return 0
}

// stty prints the terminal's size and, with the argument wait, each new size.
func stty(m *machine, out process.Channel, args []string) int {
	if m.p.spec.TTY == nil {
		m.print(process.Stderr, "stty: not a terminal\n")
		return 1
	}
	size := m.size()
	for {
		m.print(out, fmt.Sprintf("%d %d\n", size.Rows, size.Cols))
		if len(args) == 0 || args[0] != "wait" {
			return 0
		}
		last := size
		if size = m.await(func() bool { return m.p.size != last }); m.dead() {
			return 0
		}
	}
}

// yes prints lines without end, as fast as the streams read them.
func yes(m *machine, out process.Channel, _ []string) int {
	line := strings.Repeat("y\n", 512)
	for !m.dead() {
		m.await(func() bool { return len(m.p.streams) > 0 })
		m.print(out, line)
	}
	return 0
}

// print waits until the streams have read enough, then prints. On a terminal
// everything goes to Stdout, with \r\n.
func (m *machine) print(channel process.Channel, text string) {
	if m.p.spec.TTY != nil {
		channel, text = process.Stdout, strings.ReplaceAll(text, "\n", "\r\n")
	}
	m.p.guest.mu.Lock()
	defer m.p.guest.mu.Unlock()
	for m.p.killed == "" && !m.p.readUpTo(m.p.end-int64(m.p.guest.Keep)) {
		m.p.guest.changed.Wait()
	}
	if m.p.killed == "" && text != "" {
		m.p.print(channel, []byte(text))
	}
}

// read waits for input; more is false at the end of stdin.
func (m *machine) read() (data []byte, more bool) {
	m.p.guest.mu.Lock()
	defer m.p.guest.mu.Unlock()
	for m.p.stdin.Len() == 0 {
		if !m.p.stdinOpen || m.p.killed != "" {
			return nil, false
		}
		m.p.guest.changed.Wait()
	}
	data = append(data, m.p.stdin.Bytes()...)
	m.p.stdin.Reset()
	m.p.guest.changed.Broadcast()
	return data, true
}

func (m *machine) size() process.Size { return m.await(func() bool { return true }) }

// await waits until the condition holds, or the process is killed, and returns
// the terminal's size.
func (m *machine) await(holds func() bool) process.Size {
	m.p.guest.mu.Lock()
	defer m.p.guest.mu.Unlock()
	for m.p.killed == "" && !holds() {
		m.p.guest.changed.Wait()
	}
	return m.p.size
}

func (m *machine) sleep(d time.Duration) {
	over := false
	timer := time.AfterFunc(d, func() {
		m.p.guest.mu.Lock()
		defer m.p.guest.mu.Unlock()
		over = true
		m.p.guest.changed.Broadcast()
	})
	defer timer.Stop()
	m.await(func() bool { return over })
}

func (m *machine) dead() bool {
	m.p.guest.mu.Lock()
	defer m.p.guest.mu.Unlock()
	return m.p.killed != ""
}
