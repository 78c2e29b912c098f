package guest

import (
	"bytes"
	"context"
	"io"
	"slices"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/process"
)

// proc is one process. The table's mutex guards it.
type proc struct {
	guest *ProcessTable
	spec  process.Spec
	env   map[string]string
	about process.Process
	size  process.Size
	alarm *time.Timer // of its timeout; nil without one

	out        []piece // the last of its output
	begin, end int64   // offsets of out
	streams    []*stream
	unread     []process.Channel // closed by CloseOutput

	stdin     bytes.Buffer
	stdinOpen bool

	killed   string // the signal that ended it; "" if none did
	timedOut bool
	exit     *process.Exit
}

// piece is output of one channel.
type piece struct {
	channel process.Channel
	data    []byte
}

func (p *proc) now() process.Process {
	about := p.about
	about.Output = p.end
	if p.exit != nil {
		exit := *p.exit
		about.State, about.Exit = process.Exited, &exit
	}
	return about
}

// run runs the program and stores its exit code.
func (p *proc) run() {
	code := runLine(&machine{p}, p.spec)
	p.guest.mu.Lock()
	defer p.guest.mu.Unlock()
	if p.alarm != nil {
		p.alarm.Stop()
	}
	p.exit = &process.Exit{Code: code, Signal: p.killed, TimedOut: p.timedOut, At: time.Now()}
	if n := slices.Index(fatal, p.killed); n > 0 {
		p.exit.Code = 128 + n
	}
	p.guest.changed.Broadcast()
}

// fatal are the signals that end a process, by number.
var fatal = []string{"", "SIGHUP", "SIGINT", "SIGQUIT", 9: "SIGKILL", 10: "SIGUSR1", 13: "SIGPIPE", 15: "SIGTERM"}

func (p *proc) kill(signal string) {
	if p.killed == "" && p.exit == nil {
		p.killed = signal
	}
	p.guest.changed.Broadcast()
}

func (p *proc) timeOut() {
	p.guest.mu.Lock()
	defer p.guest.mu.Unlock()
	p.timedOut = p.exit == nil
	p.kill("SIGKILL")
}

func (p *proc) signal(name string) error {
	if p.exit != nil {
		return errs.New(errs.Conflict, "process_ended", "cannot signal process %s: it has ended", p.about.ID)
	}
	if slices.Contains(fatal, name) {
		p.kill(name)
	}
	return nil
}

func (p *proc) resize(size process.Size) error {
	if p.spec.TTY == nil {
		return errs.New(errs.Conflict, "no_terminal", "cannot resize process %s: it has no terminal", p.about.ID)
	}
	p.size = size
	p.guest.changed.Broadcast()
	return nil
}

// write writes data to stdin; while the buffer is full it waits, until giveUp
// returns an error.
func (p *proc) write(data []byte, giveUp func() error) (n int, err error) {
	if p.spec.TTY != nil {
		data = p.typed(data)
	}
	for len(data) > 0 {
		if err := giveUp(); err != nil {
			return n, err
		}
		if !p.stdinOpen || p.exit != nil {
			return n, errs.New(errs.Conflict, "stdin_closed", "cannot write to process %s: its stdin is closed", p.about.ID)
		}
		room := min(len(data), stdinBuffer-p.stdin.Len())
		if room == 0 {
			p.guest.changed.Wait()
			continue
		}
		p.stdin.Write(data[:room])
		n, data = n+room, data[room:]
		p.guest.changed.Broadcast()
	}
	return n, nil
}

// typed acts as the terminal: it echoes keys and handles ctrl-C and ctrl-D. It
// returns the input for the program.
func (p *proc) typed(keys []byte) []byte {
	var line []byte
	for _, key := range keys {
		switch key {
		case 0x03:
			p.print(process.Stdout, []byte("^C"))
			p.kill("SIGINT")
		case 0x04:
			p.endStdin()
		case '\r':
			p.print(process.Stdout, []byte("\r\n"))
			line = append(line, '\n')
		default:
			p.print(process.Stdout, []byte{key})
			line = append(line, key)
		}
	}
	return line
}

func (p *proc) endStdin() {
	p.stdinOpen = false
	p.guest.changed.Broadcast()
}

// print appends output, and drops the oldest that all streams have read.
func (p *proc) print(channel process.Channel, data []byte) {
	if slices.Contains(p.unread, channel) {
		p.kill("SIGPIPE")
		return
	}
	p.out = append(p.out, piece{channel, bytes.Clone(data)})
	p.end += int64(len(data))
	for len(p.out) > 0 && p.end-p.begin > int64(p.guest.Keep) && p.readUpTo(p.begin+int64(len(p.out[0].data))) {
		p.begin += int64(len(p.out[0].data))
		p.out = p.out[1:]
	}
	p.guest.changed.Broadcast()
}

// readUpTo reports whether all attached streams have read up to offset.
func (p *proc) readUpTo(offset int64) bool {
	return !slices.ContainsFunc(p.streams, func(s *stream) bool { return s.at < offset })
}

// attach makes a stream that ends with ctx.
func (g *ProcessTable) attach(ctx context.Context, p *proc, from int64) *stream {
	s := &stream{p: p, about: p.now(), at: from}
	p.streams = append(p.streams, s)
	s.unbind = context.AfterFunc(ctx, func() { _ = s.Close() })
	return s
}

// stream implements process.Stream.
type stream struct {
	p      *proc
	about  process.Process
	unbind func() bool
	at     int64
	closed bool
	ended  bool // the exit was returned
}

func (s *stream) Process() process.Process { return s.about }

func (s *stream) Next() (process.Chunk, error) {
	g := s.p.guest
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		switch {
		case s.broken() != nil:
			return process.Chunk{}, s.broken()
		case s.ended:
			return process.Chunk{}, io.EOF
		case s.at < s.p.begin:
			lost := s.p.begin - s.at
			s.at = s.p.begin
			return process.Chunk{Lost: lost, Offset: s.at}, nil
		case s.at < s.p.end:
			return s.read(), nil
		case s.p.exit != nil:
			s.ended = true
			exit := *s.p.exit
			return process.Chunk{Offset: s.at, Exit: &exit}, nil
		}
		g.changed.Wait()
	}
}

// read returns the piece at the stream's offset, or the rest of it.
func (s *stream) read() process.Chunk {
	start := s.p.begin
	for _, piece := range s.p.out {
		if next := start + int64(len(piece.data)); s.at >= next {
			start = next
			continue
		}
		data := piece.data[s.at-start:]
		s.at += int64(len(data))
		s.p.guest.changed.Broadcast()
		return process.Chunk{Channel: piece.channel, Data: bytes.Clone(data), Offset: s.at}
	}
	panic("fake: an offset is beyond the output")
}

func (s *stream) broken() error {
	if s.closed || s.p.guest.lost {
		return errLost
	}
	return nil
}

func (s *stream) Write(data []byte) (int, error) {
	s.p.guest.mu.Lock()
	defer s.p.guest.mu.Unlock()
	return s.p.write(data, s.broken)
}

func (s *stream) CloseStdin() error {
	return s.do(func() error { s.p.endStdin(); return nil })
}

func (s *stream) CloseOutput(c process.Channel) error {
	return s.do(func() error { s.p.unread = append(s.p.unread, c); return nil })
}

func (s *stream) Signal(name string) error {
	return s.do(func() error { return s.p.signal(name) })
}

func (s *stream) Resize(size process.Size) error {
	return s.do(func() error { return s.p.resize(size) })
}

func (s *stream) do(what func() error) error {
	s.p.guest.mu.Lock()
	defer s.p.guest.mu.Unlock()
	if err := s.broken(); err != nil {
		return err
	}
	return what()
}

func (s *stream) Close() error {
	s.p.guest.mu.Lock()
	defer s.p.guest.mu.Unlock()
	s.unbind()
	s.closed = true
	s.p.streams = slices.DeleteFunc(s.p.streams, func(t *stream) bool { return s == t })
	s.p.guest.changed.Broadcast()
	return nil
}
