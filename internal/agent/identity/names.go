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

// rename gives the guest its hostname. The files come first: when it is done
// again, the kernel still has the old one.
func (g *Guest) rename(_ context.Context, as wire.Identity) error {
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

// hostWord is a name in a line of /etc/hosts.
var hostWord = regexp.MustCompile(`[^\s#]+`)

// renameHost renames a host in the text of /etc/hosts, with a domain and
// without. The machine itself stays localhost to itself, and comments stay.
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

// machineIDs are the files that have it: the second one while /etc cannot be
// written to, the third one for D-Bus, where it is no link.
var machineIDs = []string{"etc/machine-id", "run/machine-id", "var/lib/dbus/machine-id"}

// machineIDForm is what such a file says once a machine has an id.
var machineIDForm = regexp.MustCompile(`^[0-9a-f]{32}\s*$`)

// renewMachineID gives the guest a new machine id, where it has one. Programs
// that have read the old one keep it.
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

// journals are where journald keeps a directory by the machine id, which is all
// that its readers look at.
var journals = []string{"run/log/journal", "var/log/journal"}

// moveJournal keeps what was logged before the guest became itself readable.
// journald writes on into the files that it has open.
func (g *Guest) moveJournal(old, id string) error {
	if old == "" {
		return nil
	}
	for _, dir := range journals {
		if err := os.Rename(g.path(dir, old), g.path(dir, id)); err != nil && !absent(err) {
			return fmt.Errorf("cannot keep the journal: %w", err)
		}
	}
	return nil
}

// newMachineID returns a random id in the form that systemd gives its own.
func newMachineID() string {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails: it ends the program instead
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return hex.EncodeToString(id)
}

// machineID returns the machine id, or "" in an image that has none.
func (g *Guest) machineID() string {
	text, err := os.ReadFile(g.path(machineIDs[0]))
	if err != nil || !machineIDForm.Match(text) {
		return ""
	}
	return strings.TrimSpace(string(text))
}
