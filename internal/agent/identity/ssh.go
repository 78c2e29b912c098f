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

	"github.com/hatchvm/hatch/internal/agent/sshtrust"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

const (
	keygenTimeout  = 90 * time.Second // for an RSA key in an emulated guest
	reloadTimeout  = 10 * time.Second // until sshd listens again
	reloadInterval = 10 * time.Millisecond
)

// keyKinds are the kinds of keys that are replaced, the fastest first. Keys of other
// kinds are removed.
var keyKinds = []string{"ed25519", "ecdsa", "rsa"}

// keyFile matches the file name of a private host key.
var keyFile = regexp.MustCompile(`^ssh_host_([a-z0-9]+)_key$`)

// replaceSSHTrust has the guest accept certificates for the clone, and no more those for
// the original.
func (g *Guest) replaceSSHTrust(_ context.Context, as wire.Identity) error {
	if as.SSH == nil {
		return sshtrust.Remove(g.root)
	}
	return sshtrust.Write(g.root, *as.SSH)
}

// renewHostKeys replaces the host keys, and has a running sshd load them. A guest
// without host keys generates its own later.
func (g *Guest) renewHostKeys(ctx context.Context, as wire.Identity) error {
	kinds, err := g.hostKeyKinds()
	if err != nil || len(kinds) == 0 {
		return err
	}
	keygen := g.program("ssh-keygen")
	if keygen == "" {
		return errors.New("the image has host keys, but no ssh-keygen to replace them")
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

// renewHostKey generates a key beside the old one and renames it, so that sshd always
// finds a key.
func (g *Guest) renewHostKey(ctx context.Context, keygen, kind, comment string) error {
	key := g.hostKey(kind)
	fresh := key + ".new"
	if err := errors.Join(remove(fresh), remove(fresh+".pub")); err != nil {
		return err
	}
	if err := g.run(ctx, keygenTimeout, keygen, "-q", "-t", kind, "-N", "", "-C", comment, "-f", fresh); err != nil {
		return err
	}
	return errors.Join(os.Rename(fresh, key), os.Rename(fresh+".pub", key+".pub"))
}

// reloadSSH has each listening sshd load its keys, and waits until it listens again.
// Its open sessions continue.
func (g *Guest) reloadSSH(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	defer cancel()
	for _, pid := range g.sshListeners() {
		before := g.sockets(pid)
		if err := g.kernel.hangUp(pid); err != nil {
			return fmt.Errorf("cannot signal sshd to load its keys: %w", err)
		}
		if err := g.awaitListening(ctx, pid, before); err != nil {
			return err
		}
	}
	return nil
}

// sshListeners returns the pids of the sshd processes that accept connections. Their
// process titles contain "[listener]".
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

// awaitListening waits until an sshd that got SIGHUP has as many sockets as before,
// and other ones: it executes itself again. It returns an error if that sshd has ended.
func (g *Guest) awaitListening(ctx context.Context, pid int, before []string) error {
	tick := time.NewTicker(reloadInterval)
	defer tick.Stop()
	for {
		if _, err := os.Stat(g.path("proc", strconv.Itoa(pid))); absent(err) {
			return errors.New("sshd ended when it was signalled to load its keys")
		}
		after := g.sockets(pid)
		if len(after) >= len(before) && !slices.Equal(after, before) && g.listensForSSH(pid) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("sshd does not listen again after loading its keys: %w", ctx.Err())
		}
	}
}
