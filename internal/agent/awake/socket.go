package awake

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Socket is where programs in the guest reach the agent.
const Socket = "/run/hatch/agent.sock"

const (
	maxLine        = 128 // bytes of a request or a reply
	maxConnections = 16  // that are served at a time; others wait
	requestTimeout = 5 * time.Second
	acceptPause    = 100 * time.Millisecond // after an error, as when the guest is out of file descriptors
)

// Serve serves programs at l until ctx is done or l is closed, and closes it.
func (k *Keeper) Serve(ctx context.Context, l net.Listener) error {
	var open sync.WaitGroup
	defer open.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	defer func() { _ = l.Close() }()
	slots := make(chan struct{}, maxConnections)
	for {
		slots <- struct{}{} // which a slow program frees after requestTimeout
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			<-slots
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(acceptPause):
			}
			continue
		}
		open.Go(func() {
			defer func() { <-slots }()
			defer func() { _ = conn.Close() }()
			_ = conn.SetDeadline(time.Now().Add(requestTimeout))
			k.serve(conn)
		})
	}
}

// Listen makes the socket, in place of one that an agent before this one has left.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(path, 0o666)); err != nil { // the umask may forbid more
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// serve serves one request.
func (k *Keeper) serve(conn io.ReadWriter) {
	line, err := readLine(conn)
	if err != nil {
		_, _ = fmt.Fprintf(conn, "error %v\n", err)
		return
	}
	_, _ = fmt.Fprintln(conn, k.answer(line))
}

// readLine reads one line, whose end may be that of the stream.
func readLine(r io.Reader) (string, error) {
	line, err := bufio.NewReaderSize(io.LimitReader(r, maxLine), maxLine).ReadString('\n')
	switch {
	case len(line) == maxLine:
		return "", fmt.Errorf("a line has %d bytes at most", maxLine-1)
	case errors.Is(err, io.EOF) && line != "":
		return line, nil
	default:
		return line, err
	}
}

// Ask asks the agent at path to keep the guest awake for a duration as in [ParseDuration],
// and returns how much longer it is kept awake then. "" only asks for that.
func Ask(ctx context.Context, path, duration string) (left time.Duration, err error) {
	conn, err := (&net.Dialer{Timeout: requestTimeout}).DialContext(ctx, "unix", path)
	if err != nil {
		return 0, fmt.Errorf("cannot reach the agent of this guest: %w", err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(requestTimeout))
	if _, err := fmt.Fprintln(conn, Command, duration); err != nil {
		return 0, fmt.Errorf("cannot ask the agent of this guest: %w", err)
	}
	reply, err := readLine(conn)
	if err != nil {
		return 0, fmt.Errorf("the agent of this guest does not answer: %w", err)
	}
	word, text, _ := strings.Cut(strings.TrimSpace(reply), " ")
	seconds, err := strconv.ParseInt(text, 10, 32)
	if word != "ok" || err != nil {
		return 0, errors.New(text)
	}
	return time.Duration(seconds) * time.Second, nil
}
