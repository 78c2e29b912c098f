package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/hatchvm/hatch/api"
)

// Paths in a guest are absolute. They are bytes, not necessarily UTF-8.

// PathOf returns the exact bytes of a file's path.
func PathOf(f api.File) string { return exact(f.Path, f.PathEncoded) }

// NameOf returns the exact bytes of the last element of a file's path.
func NameOf(f api.File) string { return exact(f.Name, f.NameEncoded) }

// TargetOf returns the exact bytes of the target of a symlink.
func TargetOf(f api.File) string { return exact(f.Target, f.TargetEncoded) }

func exact(text, encoded string) string {
	if decoded, err := url.PathUnescape(encoded); err == nil && encoded != "" {
		return decoded
	}
	return text
}

// textOrEncoded returns the two fields for a path in a request body.
func textOrEncoded(path string) (text, encoded string) {
	if utf8.ValidString(path) {
		return path, ""
	}
	return "", url.PathEscape(path)
}

// fileCall returns a call about a path in a VM.
func fileCall(method, id, path string, verb ...string) (call, error) {
	target, err := item(vms, id, append([]string{"files"}, verb...)...)
	return call{method: method, path: target, query: url.Values{"path": {path}}}, err
}

// FilePart is a part of a file. The zero value is the whole file.
type FilePart struct {
	Offset int64 // negative: from the end
	Length int64 // 0: up to the end
}

// rangeHeader returns the part as an HTTP Range header, "" for the whole file.
func (p FilePart) rangeHeader() string {
	switch {
	case p.Offset < 0:
		return fmt.Sprintf("bytes=%d", p.Offset)
	case p.Length > 0:
		return fmt.Sprintf("bytes=%d-%d", p.Offset, p.Offset+p.Length-1)
	case p.Offset > 0:
		return fmt.Sprintf("bytes=%d-", p.Offset)
	}
	return ""
}

// FileContent is the content of a file, or of a part. If the transfer breaks, a
// read returns an error other than io.EOF.
type FileContent struct {
	io.ReadCloser
	Size       int64  // in bytes; -1 if not known
	Mode       uint32 // permission bits with setuid, setgid and sticky
	ModifiedAt time.Time
	ETag       string // for WriteOptions.IfMatch; "" if the file has none
}

// ReadFile reads a file in a running VM and follows links. The caller closes it.
func (c *Client) ReadFile(ctx context.Context, id, path string, part FilePart) (*FileContent, error) {
	req, err := fileCall(http.MethodGet, id, path)
	if err != nil {
		return nil, err
	}
	if value := part.rangeHeader(); value != "" {
		req.header = http.Header{"Range": {value}}
	}
	resp, err := c.send(ctx, req) //nolint:bodyclose // the caller closes it
	if err != nil {
		return nil, err
	}
	out := &FileContent{ReadCloser: resp.Body, Size: resp.ContentLength, ETag: resp.Header.Get("ETag")}
	if part.Offset < 0 && part.Length > 0 {
		out.ReadCloser = limited{io.LimitReader(resp.Body, part.Length), resp.Body}
		out.Size = min(out.Size, part.Length)
	}
	mode, _ := strconv.ParseUint(resp.Header.Get("X-Hatch-File-Mode"), 8, 16)
	out.Mode = uint32(mode)
	out.ModifiedAt, _ = http.ParseTime(resp.Header.Get("Last-Modified"))
	return out, nil
}

// limited reads only the beginning of a body, and closes all of it.
type limited struct {
	io.Reader
	io.Closer
}

// WriteOptions are the options of WriteFile. The zero value keeps the mode and
// owner of an existing file; a new file has 0644 and root.
type WriteOptions struct {
	Mode    *uint32
	Owner   string // NAME or UID, optionally with :GROUP
	Parents bool   // create missing parent directories

	// IfMatch has the ETags of the versions that may be replaced, or "*" for any;
	// IfNoneMatch those that may not, or "*" for a file that must not exist yet. See
	// [IsPreconditionFailed].
	IfMatch, IfNoneMatch string
}

// WriteFile writes a file of any size in a running VM. It replaces an existing file
// atomically once all of content was read; otherwise the old file stays.
func (c *Client) WriteFile(ctx context.Context, id, path string, content io.Reader, opts WriteOptions) (api.File, error) {
	req, err := fileCall(http.MethodPut, id, path)
	if err != nil {
		return api.File{}, err
	}
	if opts.Mode != nil {
		req.query.Set("mode", fmt.Sprintf("%04o", *opts.Mode))
	}
	setString(req.query, "owner", opts.Owner)
	setTrue(req.query, "parents", opts.Parents)
	req.header = conditions(opts.IfMatch, opts.IfNoneMatch)
	req.content, req.contentType = content, "application/octet-stream"
	return c.doFile(ctx, req)
}

// StatFile describes a file in a running VM. It does not follow links.
func (c *Client) StatFile(ctx context.Context, id, path string) (api.File, error) {
	req, err := fileCall(http.MethodGet, id, path, "stat")
	if err != nil {
		return api.File{}, err
	}
	return c.doFile(ctx, req)
}

// ListFiles yields a directory's entries, sorted by name, and ends at the first
// error.
func (c *Client) ListFiles(ctx context.Context, id, path string) iter.Seq2[api.File, error] {
	return func(yield func(api.File, error) bool) {
		if err := c.listFiles(ctx, id, path, yield); err != nil {
			yield(api.File{}, err)
		}
	}
}

// listFiles returns nil if yield stops it.
func (c *Client) listFiles(ctx context.Context, id, path string, yield func(api.File, error) bool) error {
	req, err := fileCall(http.MethodGet, id, path, "list")
	if err != nil {
		return err
	}
	body, err := c.stream(ctx, req)
	if err != nil {
		return err
	}
	defer body.Close()
	entries := json.NewDecoder(body)
	if _, err := entries.Token(); err != nil { // the bracket
		return fmt.Errorf("cannot read the server's response: %w", err)
	}
	for entries.More() {
		var f api.File
		if err := entries.Decode(&f); err != nil {
			return fmt.Errorf("cannot read the server's response: %w", err)
		}
		if !yield(f, nil) {
			return nil
		}
	}
	if _, err := entries.Token(); err != nil {
		return fmt.Errorf("cannot read the server's response: %w", err)
	}
	return nil
}

// DirectoryOptions are the options of MakeDirectory.
type DirectoryOptions struct {
	Mode    *uint32 // 0755 when nil
	Owner   string  // NAME or UID, optionally with :GROUP; root when empty
	Parents bool    // create missing parents, too; an existing directory is then not an error
}

// MakeDirectory creates a directory in a running VM.
func (c *Client) MakeDirectory(ctx context.Context, id, path string, opts DirectoryOptions) (api.File, error) {
	body := api.MakeDirectory{Owner: opts.Owner, Parents: opts.Parents}
	body.Path, body.PathEncoded = textOrEncoded(path)
	if opts.Mode != nil {
		body.Mode = fmt.Sprintf("%04o", *opts.Mode)
	}
	return c.postFile(ctx, id, "mkdir", body)
}

// RenameFile moves a file in a running VM and replaces an existing file at the new
// path.
func (c *Client) RenameFile(ctx context.Context, id, from, to string) (api.File, error) {
	var body api.RenameFile
	body.From, body.FromEncoded = textOrEncoded(from)
	body.To, body.ToEncoded = textOrEncoded(to)
	return c.postFile(ctx, id, "rename", body)
}

func (c *Client) postFile(ctx context.Context, id, verb string, body any) (api.File, error) {
	target, err := item(vms, id, "files", verb)
	if err != nil {
		return api.File{}, err
	}
	return post[api.File](ctx, c, target, body)
}

// RemoveFile removes a file or an empty directory of a running VM; with
// recursive, a tree.
func (c *Client) RemoveFile(ctx context.Context, id, path string, recursive bool) error {
	req, err := fileCall(http.MethodDelete, id, path)
	if err != nil {
		return err
	}
	setTrue(req.query, "recursive", recursive)
	_, err = c.do(ctx, req, nil)
	return err
}

// ReadTree returns a file or tree of a running VM as a tar archive. Names in it
// begin with the last element of path. If the transfer breaks, a read returns an
// error other than io.EOF. The caller closes it. The guest is not trusted: unpack
// the archive with care.
func (c *Client) ReadTree(ctx context.Context, id, path string) (io.ReadCloser, error) {
	req, err := fileCall(http.MethodGet, id, path, "tar")
	if err != nil {
		return nil, err
	}
	return c.stream(ctx, req)
}

// WriteTree unpacks a tar archive below a directory of a running VM, which it
// creates if missing. owner (NAME or UID, optionally with :GROUP) owns all files;
// if it is empty, the ids in the archive do.
func (c *Client) WriteTree(ctx context.Context, id, path, owner string, archive io.Reader) (api.File, error) {
	req, err := fileCall(http.MethodPut, id, path, "tar")
	if err != nil {
		return api.File{}, err
	}
	setString(req.query, "owner", owner)
	req.content, req.contentType = archive, "application/x-tar"
	return c.doFile(ctx, req)
}

func (c *Client) doFile(ctx context.Context, req call) (api.File, error) {
	var out api.File
	_, err := c.do(ctx, req, &out)
	return out, err
}

// WatchFiles watches a file or directory of a running VM; with recursive, the whole
// tree. It returns once the watch is active. The changes end with an error when ctx
// is done or the watch breaks. The end of the loop, or of ctx, ends the watch.
func (c *Client) WatchFiles(ctx context.Context, id, path string, recursive bool) (iter.Seq2[api.FileChange, error], error) {
	req, err := fileCall(http.MethodGet, id, path, "watch")
	if err != nil {
		return nil, err
	}
	setTrue(req.query, "recursive", recursive)
	body, err := c.stream(ctx, req)
	if err != nil {
		return nil, err
	}
	return func(yield func(api.FileChange, error) bool) {
		defer body.Close()
		if err := readChanges(body, yield); err != nil {
			yield(api.FileChange{}, err)
		}
	}, nil
}

// readChanges returns nil if yield stops it.
func readChanges(stream io.Reader, yield func(api.FileChange, error) bool) error {
	for m, err := range messages(stream) {
		if err != nil {
			return fmt.Errorf("the watch has ended: %w", err)
		}
		if m.data == "" {
			continue
		}
		var change api.FileChange
		if err := json.Unmarshal([]byte(m.data), &change); err != nil {
			return fmt.Errorf("cannot read a change: %w", err)
		}
		if !yield(change, nil) {
			return nil
		}
	}
	return fmt.Errorf("the watch has ended: %w", io.ErrUnexpectedEOF)
}

func setTrue(q url.Values, name string, value bool) {
	if value {
		q.Set(name, "true")
	}
}
