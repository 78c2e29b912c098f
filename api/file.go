package api

// Kinds of files.
const (
	FileRegular   = "file"
	FileDirectory = "directory"
	FileSymlink   = "symlink"
	FileOther     = "other"
)

// File describes a file in a guest. File names in Linux are bytes. If one is not
// UTF-8, its field is approximate, and the field that ends in _encoded has the
// exact bytes, percent-encoded as in a query.
type File struct {
	Path          string `json:"path" example:"/etc/hostname" doc:"Absolute path."`
	PathEncoded   string `json:"path_encoded,omitempty" doc:"The bytes of the path, percent-encoded, if it is not UTF-8."`
	Name          string `json:"name" example:"hostname" doc:"Last element of the path."`
	NameEncoded   string `json:"name_encoded,omitempty" doc:"The bytes of the name, percent-encoded, if it is not UTF-8."`
	Kind          string `json:"kind" enum:"file,directory,symlink,other" doc:"other: a device, socket or pipe."`
	Size          int64  `json:"size" doc:"Size in bytes."`
	Mode          string `json:"mode" example:"0644" doc:"Permissions in octal, with setuid, setgid and sticky."`
	UID           int    `json:"uid"`
	GID           int    `json:"gid"`
	User          string `json:"user,omitempty" doc:"Name of the uid in the guest, if it has one."`
	Group         string `json:"group,omitempty" doc:"Name of the gid in the guest, if it has one."`
	ModifiedAt    Time   `json:"modified_at"`
	Target        string `json:"target,omitempty" doc:"Target of a symlink, as stored."`
	TargetEncoded string `json:"target_encoded,omitempty" doc:"The bytes of the target, percent-encoded, if it is not UTF-8."`
}

// MakeDirectory is the body of POST /vms/{id}/files/mkdir.
type MakeDirectory struct {
	Path        string `json:"path,omitempty" doc:"Absolute path. Either this or path_encoded is required."`
	PathEncoded string `json:"path_encoded,omitempty" doc:"Percent-encoded, for a path that is not UTF-8."`
	Mode        string `json:"mode,omitempty" pattern:"^[0-7]{1,5}$" default:"0755" doc:"Mode in octal."`
	Owner       string `json:"owner,omitempty" doc:"NAME or UID, optionally with :GROUP. Defaults to root."`
	Parents     bool   `json:"parents,omitempty" doc:"Create missing parent directories, too; an existing directory is then not an error."`
}

// RenameFile is the body of POST /vms/{id}/files/rename.
type RenameFile struct {
	From        string `json:"from,omitempty" doc:"Absolute path. Either this or from_encoded is required."`
	FromEncoded string `json:"from_encoded,omitempty" doc:"Percent-encoded, for a path that is not UTF-8."`
	To          string `json:"to,omitempty" doc:"Absolute path; an existing file is replaced. Either this or to_encoded is required."`
	ToEncoded   string `json:"to_encoded,omitempty" doc:"Percent-encoded, for a path that is not UTF-8."`
}

// FileChange is one event of GET /vms/{id}/files/watch.
type FileChange struct {
	Kind        string `json:"kind" enum:"create,write,remove,rename,chmod,missed" doc:"missed: some changes were lost; list the directory again."`
	Path        string `json:"path,omitempty" doc:"Absolute path; the new one after a rename."`
	PathEncoded string `json:"path_encoded,omitempty" doc:"The bytes of the path, percent-encoded, if it is not UTF-8."`
	From        string `json:"from,omitempty" doc:"Old path, before a rename."`
	FromEncoded string `json:"from_encoded,omitempty" doc:"The bytes of the old path, percent-encoded, if it is not UTF-8."`
	At          Time   `json:"at"`
}
