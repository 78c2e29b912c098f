// Package local is the door for programs on this host: it listens on a unix socket,
// whose file only root, hatchd's user and one group can open, and says which user
// is at the other end of a connection.
//
// It serves no HTTP and knows no keys: the daemon serves the API on the listener, and
// httpapi decides what a peer may do. A guest has no file system of the host, and so
// never reaches the socket; routes and published ports lead to guests only. Start at
// [Listen] and [PeerOf].
package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Group is the group of the host whose members may connect, if the host has it.
const Group = "hatch"

// MaxPath is the length of the longest path that a socket can have, in bytes.
const MaxPath = 107

const (
	socketMode = 0o660
	dirMode    = 0o710 // of hatchd's own directory: the group may open what is in it
	newSuffix  = ".new"
)

// Config says where a socket is, and who may connect.
type Config struct {
	Path string // absolute
	// OwnDir says that the socket's directory is hatchd's alone: it is made if it is
	// missing, and opened for the group.
	OwnDir bool
	GID    int // whose members may connect; negative for none
}

// Listener accepts connections of this host's processes. Its socket's file is removed
// by Close, unless another process has replaced it.
type Listener struct {
	*net.UnixListener
	path string
	file fs.FileInfo
}

// ErrInUse is the error of a socket at which another process listens.
var ErrInUse = errors.New("another process listens there")

// ErrForeign is the error of a path that another program's file has.
var ErrForeign = errors.New("a file that is not a socket is there")

// GroupID returns the id of the group, -1 if this host does not have it.
func GroupID() (int, error) {
	group, err := user.LookupGroup(Group)
	if _, unknown := errors.AsType[user.UnknownGroupError](err); unknown {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("cannot look up the group %s: %w", Group, err)
	}
	return strconv.Atoi(group.Gid)
}

// Listen makes the socket. It replaces that of a process that has ended, and no other
// file. Errors: ErrInUse, ErrForeign.
//
// The socket is made under another name first, and gets its own one when its owner and
// mode are right: no process can connect before. The caller holds the lock of the data
// directory, so that no other hatchd with the same path does this at the same time.
func Listen(ctx context.Context, cfg Config) (*Listener, error) {
	if len(cfg.Path)+len(newSuffix) > MaxPath {
		return nil, fmt.Errorf("the path %s is %d bytes; the limit is %d", cfg.Path, len(cfg.Path), MaxPath-len(newSuffix))
	}
	if cfg.OwnDir {
		if err := openDir(filepath.Dir(cfg.Path), cfg.GID); err != nil {
			return nil, err
		}
	}
	for _, path := range []string{cfg.Path, cfg.Path + newSuffix} {
		if err := checkFree(ctx, path); err != nil {
			return nil, err
		}
	}
	temporary := cfg.Path + newSuffix
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	file, err := publish(cfg, temporary)
	if err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(temporary))
	}
	return &Listener{UnixListener: l, path: cfg.Path, file: file}, nil
}

// openDir makes the directory, and lets the group open what is in it, if it is ours.
func openDir(dir string, gid int) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); gid < 0 || !ok || int(owner.Uid) != os.Geteuid() || info.Mode().Perm()&0o001 != 0 {
		return nil
	}
	return errors.Join(os.Chown(dir, -1, gid), os.Chmod(dir, dirMode))
}

// checkTimeout bounds the attempt to reach a process at an existing socket.
const checkTimeout = time.Second

// checkFree returns an error for a path that another process uses.
func checkFree(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return ErrForeign
	}
	conn, err := (&net.Dialer{Timeout: checkTimeout}).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return errors.Join(ErrInUse, conn.Close())
	case errors.Is(err, syscall.ECONNREFUSED): // the process has ended
		return nil
	case errors.Is(err, syscall.EPROTOTYPE): // of another kind, such as that of a log
		return ErrForeign
	}
	return fmt.Errorf("%w: %w", ErrInUse, err)
}

// publish gives the socket its mode, its group and its name.
func publish(cfg Config, temporary string) (fs.FileInfo, error) {
	if err := os.Chmod(temporary, socketMode); err != nil {
		return nil, err
	}
	if cfg.GID >= 0 {
		if err := os.Chown(temporary, -1, cfg.GID); err != nil {
			return nil, err
		}
	}
	info, err := os.Lstat(temporary)
	if err != nil {
		return nil, err
	}
	return info, os.Rename(temporary, cfg.Path)
}

// Close ends the listener and removes its socket's file.
func (l *Listener) Close() error {
	err := l.UnixListener.Close()
	if at, statErr := os.Lstat(l.path); statErr == nil && os.SameFile(at, l.file) {
		err = errors.Join(err, os.Remove(l.path))
	}
	return err
}

// Peer is the process at the other end of a connection, as it was when it connected.
type Peer struct {
	UID    uint32
	groups []uint32
}

// PeerOf returns the peer of a connection of a unix socket, also of one in others
// that have a method NetConn. ok = false means that it is another connection, or that
// the kernel does not say.
func PeerOf(conn net.Conn) (peer Peer, ok bool) {
	for {
		inner, wrapped := conn.(interface{ NetConn() net.Conn })
		if !wrapped {
			break
		}
		conn = inner.NetConn()
	}
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return Peer{}, false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return Peer{}, false
	}
	controlErr := raw.Control(func(fd uintptr) { peer, err = peerOf(int(fd)) })
	return peer, err == nil && controlErr == nil
}

func peerOf(fd int) (Peer, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Peer{}, err
	}
	groups, err := peerGroups(fd)
	if err != nil {
		return Peer{}, err
	}
	return Peer{UID: cred.Uid, groups: append(groups, cred.Gid)}, nil
}

// Trusted reports whether the peer needs no key: root, the user of this process, and
// members of the group are.
func (p Peer) Trusted(gid int) bool {
	return p.UID == 0 || int(p.UID) == os.Geteuid() || gid >= 0 && slices.Contains(p.groups, uint32(gid))
}
