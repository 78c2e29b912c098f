package identity

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// changeHostname changes the hostname. It changes the files first: after an error, the
// next attempt reads the old hostname from the kernel.
func (g *Guest) changeHostname(_ context.Context, as wire.Identity) error {
	old, err := g.kernel.hostname()
	if err != nil {
		return err
	}
	if err := edit(g.path("etc/hostname"), func([]byte) []byte { return []byte(as.Hostname + "\n") }); err != nil {
		return err
	}
	hosts := func(text []byte) []byte { return renameHost(text, old, as.Hostname) }
	if err := edit(g.path("etc/hosts"), hosts); err != nil {
		return err
	}
	return g.kernel.setHostname(as.Hostname)
}

// hostWord matches a name or an address in a line of /etc/hosts.
var hostWord = regexp.MustCompile(`[^\s#]+`)

// renameHost renames a host in the text of /etc/hosts, with a domain and without. It
// does not rename localhost, and does not change comments.
func renameHost(text []byte, old, name string) []byte {
	if old == "" || old == "localhost" {
		return text
	}
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		names, comment := line, []byte(nil)
		if i := bytes.IndexByte(line, '#'); i >= 0 {
			names, comment = line[:i], line[i:]
		}
		out.Write(hostWord.ReplaceAllFunc(names, func(word []byte) []byte {
			if rest, ok := bytes.CutPrefix(word, []byte(old)); ok && (len(rest) == 0 || rest[0] == '.') {
				return append([]byte(name), rest...)
			}
			return word
		}))
		out.Write(comment)
	}
	return out.Bytes()
}

// machineIDs are the files with the machine id: the second one exists while /etc is
// read-only, the third one is D-Bus's, if it is no link.
var machineIDs = []string{"etc/machine-id", "run/machine-id", "var/lib/dbus/machine-id"}

// machineIDForm matches such a file with a machine id, unlike "uninitialized".
var machineIDForm = regexp.MustCompile(`^[0-9a-f]{32}\s*$`)

// renewMachineID replaces the machine id, if the guest has one. Programs that have read
// the old one keep it.
func (g *Guest) renewMachineID(context.Context, wire.Identity) error {
	old, id := g.machineID(), newMachineID()
	if err := g.moveJournal(old, id); err != nil {
		return err
	}
	for _, path := range machineIDs {
		if err := edit(g.path(path), func(old []byte) []byte {
			if !machineIDForm.Match(old) {
				return old
			}
			return []byte(id + "\n")
		}); err != nil {
			return err
		}
	}
	return nil
}

// journals are the directories in which journald has one named after the machine id.
// journalctl reads only that one.
var journals = []string{"run/log/journal", "var/log/journal"}

// moveJournal renames the journal's directories, so that journalctl shows also what was
// logged before. journald continues to write to its open files.
func (g *Guest) moveJournal(old, id string) error {
	if old == "" {
		return nil
	}
	for _, dir := range journals {
		if err := os.Rename(g.path(dir, old), g.path(dir, id)); err != nil && !absent(err) {
			return fmt.Errorf("cannot rename the journal's directory: %w", err)
		}
	}
	return nil
}

// newMachineID returns a random id, a UUID of version 4 as from systemd.
func newMachineID() string {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails: it ends the program instead
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return hex.EncodeToString(id)
}

// machineID returns the machine id, or "" if the image has none.
func (g *Guest) machineID() string {
	text, err := os.ReadFile(g.path(machineIDs[0]))
	if err != nil || !machineIDForm.Match(text) {
		return ""
	}
	return strings.TrimSpace(string(text))
}
