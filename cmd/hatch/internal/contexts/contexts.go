// Package contexts keeps the servers that hatch has logged in to: under a name each, the
// address, the API key and the files of certificates, in one file that only its user can
// read.
//
// It calls no server, and does not choose between a context and what flags or the
// environment say; package main of hatch does. Start at [Load] and [File.Save].
package contexts

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Local is the name of no saved context, but of the server on this host, as hatch finds
// it without any.
const Local = "local"

// maxFile is the size of the largest file that is read, in bytes.
const maxFile = 1 << 20

// Context is a server, and as whom hatch calls it.
type Context struct {
	Name     string `json:"name"`
	URL      string `json:"url"`
	Key      string `json:"key"`                   // a secret
	CAFile   string `json:"ca_file,omitempty"`     // absolute; what the server's certificate is signed with, "" for what the host trusts
	CertFile string `json:"client_cert,omitempty"` // absolute; the client's certificate, "" for none
	KeyFile  string `json:"client_key,omitempty"`  // absolute; its key
}

// File is all contexts.
type File struct {
	Current  string    `json:"current,omitempty"` // "" for none
	Contexts []Context `json:"contexts"`
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// CheckName returns an error for a name that no context can have.
func CheckName(name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("%q is not a valid name of a context: want up to 63 letters, digits, dots, hyphens or underscores", name)
	}
	if name == Local {
		return fmt.Errorf("%q is the server on this host, without a context; give another name", Local)
	}
	return nil
}

// Path returns the file below the user's directory for configurations.
func Path(configDir string) string { return filepath.Join(configDir, "hatch", "contexts.json") }

// Load reads the file. A missing one has no contexts.
func Load(path string) (File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return File{}, nil
	}
	if err != nil {
		return File{}, fmt.Errorf("cannot read the contexts: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return File{}, fmt.Errorf("cannot read the contexts: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return File{}, fmt.Errorf("cannot use %s: other users can open it, and it holds API keys; chmod 600 %s, and log in again", path, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil || len(text) > maxFile {
		return File{}, errors.Join(fmt.Errorf("cannot read the contexts in %s: it is too large, or damaged", path), err)
	}
	var all File
	if err := json.Unmarshal(text, &all); err != nil { // whose text quotes none of the file
		return File{}, fmt.Errorf("cannot read the contexts in %s: it is damaged; hatch logout --all removes it", path)
	}
	return all, nil
}

// Save replaces the file atomically; no other user can read it at any time.
func (f File) Save(path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot save the contexts: %w", err)
	}
	text, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".contexts-*") // made with mode 0600
	if err != nil {
		return fmt.Errorf("cannot save the contexts: %w", err)
	}
	_, err = tmp.Write(append(text, '\n'))
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("cannot save the contexts: %w", errors.Join(err, os.Remove(tmp.Name())))
	}
	return nil
}

// Get returns the context of a name.
func (f File) Get(name string) (Context, error) {
	at := slices.IndexFunc(f.Contexts, func(c Context) bool { return c.Name == name })
	if at < 0 {
		return Context{}, fmt.Errorf("there is no context %q", name)
	}
	return f.Contexts[at], nil
}

// Put adds a context, or replaces the one of its name, and makes it the current one.
func (f *File) Put(c Context) {
	f.Contexts = slices.DeleteFunc(f.Contexts, func(old Context) bool { return old.Name == c.Name })
	f.Contexts = append(f.Contexts, c)
	slices.SortFunc(f.Contexts, func(a, b Context) int { return strings.Compare(a.Name, b.Name) })
	f.Current = c.Name
}

// Remove removes a context. If it was the current one, there is none then.
func (f *File) Remove(name string) error {
	if _, err := f.Get(name); err != nil {
		return err
	}
	f.Contexts = slices.DeleteFunc(f.Contexts, func(c Context) bool { return c.Name == name })
	if f.Current == name {
		f.Current = ""
	}
	return nil
}
