package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// Bounds of the making of keys: one of RSA takes an emulated guest long.
const (
	keyTime    = 90 * time.Second
	reopenTime = 10 * time.Second // until sshd listens again
	reopenLook = 10 * time.Millisecond
)

// keyKinds are the kinds of keys that are made anew, where there was one, the
// quick ones first. One of another kind is dropped.
var keyKinds = []string{"ed25519", "ecdsa", "rsa"}

// keyFile is a private host key's.
var keyFile = regexp.MustCompile(`^ssh_host_([a-z0-9]+)_key$`)

// renewHostKeys makes host keys anew, and has the running sshd take them. A
// guest that has none yet makes its own later.
func (g *Guest) renewHostKeys(ctx context.Context, as wire.Identity) error {
	kinds, err := g.hostKeyKinds()
	if err != nil || len(kinds) == 0 {
		return err
	}
	keygen := g.program("ssh-keygen")
	if keygen == "" {
		return errors.New("the image has host keys and no ssh-keygen to make others")
	}
	for _, kind := range keyKinds {
		if !slices.Contains(kinds, kind) {
			continue
		}
		if err := g.renewHostKey(ctx, keygen, kind, "root@"+as.Hostname); err != nil {
			return err
		}
	}
	for _, kind := range kinds {
		if slices.Contains(keyKinds, kind) {
			continue
		}
		if err := errors.Join(remove(g.hostKey(kind)), remove(g.hostKey(kind)+".pub")); err != nil {
			return err
		}
	}
	return g.reloadSSH(ctx)
}

func (g *Guest) hostKey(kind string) string { return g.path("etc/ssh", "ssh_host_"+kind+"_key") }

func (g *Guest) hostKeyKinds() ([]string, error) {
	entries, err := os.ReadDir(g.path("etc/ssh"))
	if absent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var kinds []string
	for _, e := range entries {
		if m := keyFile.FindStringSubmatch(e.Name()); m != nil {
			kinds = append(kinds, m[1])
		}
	}
	return kinds, nil
}

// renewHostKey makes a key beside the old one and puts it in its place: sshd
// never finds none.
func (g *Guest) renewHostKey(ctx context.Context, keygen, kind, comment string) error {
	key := g.hostKey(kind)
	fresh := key + ".new"
	if err := errors.Join(remove(fresh), remove(fresh+".pub")); err != nil {
		return err
	}
	if err := g.run(ctx, keyTime, keygen, "-q", "-t", kind, "-N", "", "-C", comment, "-f", fresh); err != nil {
		return err
	}
	return errors.Join(os.Rename(fresh, key), os.Rename(fresh+".pub", key+".pub"))
}

// reloadSSH has each sshd that listens read its keys, and waits until it
// listens again. Its open sessions go on.
func (g *Guest) reloadSSH(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, reopenTime)
	defer cancel()
	for _, pid := range g.sshListeners() {
		before := g.sockets(pid)
		if err := g.kernel.hangUp(pid); err != nil {
			return fmt.Errorf("cannot have sshd read its keys: %w", err)
		}
		if err := g.awaitListening(ctx, pid, before); err != nil {
			return err
		}
	}
	return nil
}

// sshListeners returns the pids of sshd's that wait for connections, which they
// say in their titles.
func (g *Guest) sshListeners() []int {
	entries, err := os.ReadDir(g.path("proc"))
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && g.listensForSSH(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (g *Guest) listensForSSH(pid int) bool {
	dir := g.path("proc", strconv.Itoa(pid))
	comm, err := os.ReadFile(filepath.Join(dir, "comm"))
	if err != nil || string(bytes.TrimSpace(comm)) != "sshd" {
		return false
	}
	title, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	return err == nil && bytes.Contains(title, []byte("[listener]"))
}

// sockets returns the sockets that a process has open, sorted.
func (g *Guest) sockets(pid int) []string {
	dir := g.path("proc", strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var open []string
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(target, "socket:") {
			open = append(open, target)
		}
	}
	slices.Sort(open)
	return open
}

// awaitListening waits until an sshd that was told to begin anew has other
// sockets than before, and as many. One that has ended is awaited no longer.
func (g *Guest) awaitListening(ctx context.Context, pid int, before []string) error {
	look := time.NewTicker(reopenLook)
	defer look.Stop()
	for {
		if _, err := os.Stat(g.path("proc", strconv.Itoa(pid))); absent(err) {
			return errors.New("sshd ended when it was to read its keys")
		}
		after := g.sockets(pid)
		if len(after) >= len(before) && !slices.Equal(after, before) && g.listensForSSH(pid) {
			return nil
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("sshd does not listen again: %w", ctx.Err())
		}
	}
}
