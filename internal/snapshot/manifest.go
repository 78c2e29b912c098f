package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
)

// MaxManifest bounds the text of a manifest, in bytes.
const MaxManifest = 8 << 20

const (
	manifestFormat = 2 // 1 had the user data as it is
	maxParts       = 16
)

// Manifest describes a snapshot in its directory, so that the directory can be used
// without the database it was made with. The row in the database is an index of it:
// hatchd writes the manifest before the row says that the snapshot is durable, and
// does not read a row's values from it. Its JSON form is stored: keys never change.
type Manifest struct {
	Format    int       `json:"format"`
	ID        string    `json:"id"`
	VMID      string    `json:"vm_id"`
	Name      string    `json:"name,omitempty"`
	Kind      Kind      `json:"kind"`
	ParentID  string    `json:"parent_id,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	VM        Origin    `json:"vm"`
	UserData  []byte    `json:"sealed_user_data"` // of VM, as the database has it: its keys decrypt it
	Machine   Machine   `json:"machine"`
	Parts     []Part    `json:"parts"`
}

// Part is one file of a snapshot.
type Part struct {
	Name string `json:"name"`          // of the file in the directory
	Size int64  `json:"size"`          // in bytes
	Sum  string `json:"sum,omitempty"` // sha256:HEX; "" for a file whose chunks' checksums are another part
}

// ManifestOf describes a snapshot with these parts.
func ManifestOf(s Snapshot, parts []Part) Manifest {
	m := Manifest{
		Format: manifestFormat, ID: s.ID, VMID: s.VMID, Name: s.Name, Kind: s.Kind, ParentID: s.ParentID,
		CreatedAt: s.CreatedAt.UTC(), VM: s.VM, UserData: s.SealedUserData, Machine: s.Machine, Parts: parts,
	}
	m.VM.UserData = ""
	return m
}

// Encode returns the text of the manifest.
func (m Manifest) Encode() ([]byte, error) {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("cannot encode a snapshot's manifest: %w", err)
	}
	return append(text, '\n'), nil
}

var (
	manifestID = regexp.MustCompile(`^` + IDPrefix + `[a-z0-9]{1,64}$`)
	partName   = regexp.MustCompile(`^[a-z][a-z.]{0,31}$`)
	partSum    = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// ParseManifest reads the text of a manifest, which may be of any origin. It checks
// the form; that the VM can be made on this host is the caller's to check.
func ParseManifest(text []byte) (Manifest, error) {
	if len(text) > MaxManifest {
		return Manifest{}, fmt.Errorf("the manifest has more than %d MiB", MaxManifest>>20)
	}
	var m Manifest
	strict := json.NewDecoder(bytes.NewReader(text))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&m); err != nil {
		return Manifest{}, fmt.Errorf("cannot parse the manifest: %w", err)
	}
	if _, err := strict.Token(); !errors.Is(err, io.EOF) {
		return Manifest{}, errors.New("cannot parse the manifest: text follows it")
	}
	return m, m.check()
}

func (m Manifest) check() error {
	switch {
	case m.Format != manifestFormat:
		return fmt.Errorf("the manifest has format %d; this hatchd reads format %d", m.Format, manifestFormat)
	case !manifestID.MatchString(m.ID):
		return fmt.Errorf("the manifest names %.100q, which is not a snapshot id", m.ID)
	case m.Kind != Manual && m.Kind != Automatic && m.Kind != Warm:
		return fmt.Errorf("the manifest has an unknown kind %.100q", m.Kind)
	case checkName(m.Name) != nil:
		return fmt.Errorf("the manifest has an invalid name %.100q", m.Name)
	case m.ParentID != "" && !manifestID.MatchString(m.ParentID):
		return fmt.Errorf("the manifest names %.100q, which is not a snapshot id", m.ParentID)
	case len(m.Parts) > maxParts:
		return fmt.Errorf("the manifest has %d parts; the limit is %d", len(m.Parts), maxParts)
	}
	seen := map[string]bool{}
	for _, p := range m.Parts {
		if !partName.MatchString(p.Name) || strings.Contains(p.Name, "..") || seen[p.Name] {
			return fmt.Errorf("the manifest has an invalid or repeated part %.100q", p.Name)
		}
		if p.Size < 0 || p.Sum != "" && !partSum.MatchString(p.Sum) {
			return fmt.Errorf("the manifest has an invalid size or checksum of %s", p.Name)
		}
		seen[p.Name] = true
	}
	return nil
}
