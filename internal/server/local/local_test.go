package local

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t *testing.T, cfg Config) *Listener {
	t.Helper()
	l, err := Listen(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// accept connects to the listener, and returns the connection that it accepts.
func accept(t *testing.T, l net.Listener, dial func() (net.Conn, error)) net.Conn {
	t.Helper()
	client, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// wrapped is a connection in another, as listeners with limits make them.
type wrapped struct{ net.Conn }

func (w wrapped) NetConn() net.Conn { return w.Conn }

func TestThePeerIsKnown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l := listen(t, Config{Path: path, GID: -1})
	conn := accept(t, l, func() (net.Conn, error) { return net.Dial("unix", path) })
	peer, ok := PeerOf(wrapped{conn})
	if !ok || int(peer.UID) != os.Getuid() || !peer.Trusted(-1) {
		t.Errorf("the peer is %+v, known %v", peer, ok)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tcp.Close() }()
	if peer, ok := PeerOf(accept(t, tcp, func() (net.Conn, error) { return net.Dial("tcp", tcp.Addr().String()) })); ok {
		t.Errorf("a TCP connection has the peer %+v", peer)
	}
}

func TestWhoNeedsNoKey(t *testing.T) {
	const group, other = 4711, 4712
	stranger := uint32(os.Geteuid() + 12345)
	for name, c := range map[string]struct {
		peer Peer
		gid  int
		want bool
	}{
		"root":           {Peer{UID: 0}, -1, true},
		"own user":       {Peer{UID: uint32(os.Geteuid())}, -1, true},
		"member":         {Peer{UID: stranger, groups: []uint32{other, group}}, group, true},
		"not a member":   {Peer{UID: stranger, groups: []uint32{other}}, group, false},
		"no such group":  {Peer{UID: stranger, groups: []uint32{other}}, -1, false},
		"without groups": {Peer{UID: stranger}, group, false},
	} {
		if got := c.peer.Trusted(c.gid); got != c.want {
			t.Errorf("%s: trusted is %v", name, got)
		}
	}
}

func TestGroupsOfThePeer(t *testing.T) {
	mine, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range ends {
		defer func() { _ = unix.Close(fd) }()
	}
	got, err := peerGroups(ends[0])
	if err != nil || len(got) != len(mine) {
		t.Errorf("the peer has the groups %v, this process %v; %v", got, mine, err)
	}
}

func TestWhatASocketReplaces(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(t *testing.T, path string)
		want    error
	}{
		"nothing": {func(*testing.T, string) {}, nil},
		"of a process that has ended": {func(t *testing.T, path string) {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			l.SetUnlinkOnClose(false)
			_ = l.Close()
		}, nil},
		"of a process that listens": {func(t *testing.T, path string) { listen(t, Config{Path: path, GID: -1}) }, ErrInUse},
		"a file": {func(t *testing.T, path string) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, ErrForeign},
		"a link": {func(t *testing.T, path string) {
			if err := os.Symlink("/nonexistent", path); err != nil {
				t.Fatal(err)
			}
		}, ErrForeign},
		"a socket of datagrams": {func(t *testing.T, path string) {
			conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
		}, ErrForeign},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			c.prepare(t, path)
			before, _ := os.Lstat(path)
			l, err := Listen(t.Context(), Config{Path: path, GID: -1})
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if err != nil {
				if after, _ := os.Lstat(path); !os.SameFile(before, after) {
					t.Error("the file is another one")
				}
				return
			}
			if info, err := os.Lstat(path); err != nil || info.Mode() != fs.ModeSocket|socketMode {
				t.Errorf("the socket: %v, %v", info.Mode(), err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the socket is left: %v", err)
			}
		})
	}
}

func TestASocketThatWasReplacedIsLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l := listen(t, Config{Path: path, GID: -1})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	listen(t, Config{Path: path, GID: -1})
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error("another process's socket was removed")
	}
}

func TestTheGroupMayEnterTheDirectory(t *testing.T) {
	gid := os.Getgid()
	dir := filepath.Join(t.TempDir(), "hatch")
	listen(t, Config{Path: filepath.Join(dir, "s"), OwnDir: true, GID: gid})
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != dirMode || int(info.Sys().(*syscall.Stat_t).Gid) != gid {
		t.Errorf("the directory: %v, %v", info.Mode(), err)
	}
}

func TestPathsThatAreTooLong(t *testing.T) {
	long := filepath.Join(t.TempDir(), string(make([]byte, MaxPath)))
	if l, err := Listen(t.Context(), Config{Path: long, GID: -1}); err == nil {
		_ = l.Close()
		t.Error("it listens")
	}
}
