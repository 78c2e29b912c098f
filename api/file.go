package api

import "time"

// Kinds of files.
const (
	FileRegular   = "file"
	FileDirectory = "directory"
	FileSymlink   = "symlink"
	FileOther     = "other"
)

// File describes one file in a guest. Names in Linux are bytes; where they are
// not UTF-8, the field is approximate and the one that ends in _encoded has the
// bytes, percent-encoded as a query takes them.
type File struct {
	Path          string    `json:"path" example:"/etc/hostname" doc:"Absolute."`
	PathEncoded   string    `json:"path_encoded,omitempty" doc:"The path's bytes, percent-encoded, when it is not UTF-8."`
	Name          string    `json:"name" example:"hostname" doc:"The last part of the path."`
	NameEncoded   string    `json:"name_encoded,omitempty" doc:"The name's bytes, percent-encoded, when it is not UTF-8."`
	Kind          string    `json:"kind" enum:"file,directory,symlink,other" doc:"other: a device, socket or pipe."`
	Size          int64     `json:"size" doc:"In bytes."`
	Mode          string    `json:"mode" example:"0644" doc:"Permissions in octal, with setuid, setgid and sticky."`
	UID           int       `json:"uid"`
	GID           int       `json:"gid"`
	User          string    `json:"user,omitempty" doc:"The guest's name of uid, when it has one."`
	Group         string    `json:"group,omitempty" doc:"The guest's name of gid, when it has one."`
	ModifiedAt    time.Time `json:"modified_at"`
	Target        string    `json:"target,omitempty" doc:"Where a symlink leads, as it says."`
	TargetEncoded string    `json:"target_encoded,omitempty" doc:"The target's bytes, percent-encoded, when it is not UTF-8."`
}

// MakeDirectory is the body of POST /vms/{id}/files/mkdir.
type MakeDirectory struct {
	Path        string `json:"path,omitempty" doc:"Absolute. This or path_encoded is needed."`
	PathEncoded string `json:"path_encoded,omitempty" doc:"Percent-encoded, for a path that is not UTF-8."`
	Mode        string `json:"mode,omitempty" pattern:"^[0-7]{1,5}$" default:"0755" doc:"In octal."`
	Owner       string `json:"owner,omitempty" doc:"NAME or UID, optionally :GROUP; root by default."`
	Parents     bool   `json:"parents,omitempty" doc:"Make missing directories above it, too; one that exists is no error then."`
}

// RenameFile is the body of POST /vms/{id}/files/rename.
type RenameFile struct {
	From        string `json:"from,omitempty" doc:"Absolute. This or from_encoded is needed."`
	FromEncoded string `json:"from_encoded,omitempty" doc:"Percent-encoded, for a path that is not UTF-8."`
	To          string `json:"to,omitempty" doc:"Absolute; what is there is replaced. This or to_encoded is needed."`
	ToEncoded   string `json:"to_encoded,omitempty" doc:"Percent-encoded, for a path that is not UTF-8."`
}

// FileChange is one event of GET /vms/{id}/files/watch.
type FileChange struct {
	Kind        string    `json:"kind" enum:"create,write,remove,rename,chmod,missed" doc:"missed: events were lost; look again."`
	Path        string    `json:"path,omitempty" doc:"Absolute; of a rename the new path."`
	PathEncoded string    `json:"path_encoded,omitempty" doc:"The path's bytes, percent-encoded, when it is not UTF-8."`
	From        string    `json:"from,omitempty" doc:"The old path of a rename."`
	FromEncoded string    `json:"from_encoded,omitempty" doc:"Its bytes, percent-encoded, when it is not UTF-8."`
	At          time.Time `json:"at"`
}
