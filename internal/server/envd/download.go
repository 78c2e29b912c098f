package envd

import (
	"bufio"
	"errors"
	"io"
	"mime"
	"net/http"
	"path"
	"time"

	"github.com/hatchvm/hatch/internal/file"
)

// downloadIdle is how long a client may read nothing of a file.
const downloadIdle = 5 * time.Minute

// files reads or writes files.
func (e *Envd) files(w http.ResponseWriter, r *http.Request, c call) {
	if user := r.URL.Query().Get("username"); user != "" {
		c.user = user
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		e.download(w, r, c)
	case http.MethodPost:
		e.upload(w, r, c)
	default:
		w.Header().Set("Allow", "GET, HEAD, POST")
		refuse(w, http.StatusMethodNotAllowed, "files are read with GET and written with POST")
	}
}

// download answers with a file, or the parts of it that the request asks for. It never
// compresses: each byte is the file's.
func (e *Envd) download(w http.ResponseWriter, r *http.Request, c call) {
	at, err := e.resolve(r.Context(), c, r.URL.Query().Get("path"))
	if err != nil {
		e.fail(w, r, c, err)
		return
	}
	info, reader, err := e.cfg.Files.Read(r.Context(), c.scope, c.VMID, file.ReadSpec{Path: at, Length: -1})
	if err != nil {
		e.fail(w, r, c, err)
		return
	}
	content := &content{size: info.Size, open: func(offset int64) (io.ReadCloser, error) {
		_, part, err := e.cfg.Files.Read(r.Context(), c.scope, c.VMID, file.ReadSpec{Path: at, Offset: offset, Length: -1})
		return part, err
	}}
	content.use(reader, 0)
	defer content.close()
	beginning, _ := content.reader.Peek(512) // an error comes again
	h := w.Header()
	h.Set("Content-Type", http.DetectContentType(beginning))
	h.Set("Content-Disposition", mime.FormatMediaType("inline", map[string]string{"filename": path.Base(at)}))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Vary", "Accept-Encoding")
	out := &idleWriter{ResponseWriter: w, control: http.NewResponseController(w)}
	defer out.done()
	if info.Size < 0 { // the kernel makes it while it is read
		if _, err := io.Copy(out, content.reader); err != nil {
			panic(http.ErrAbortHandler) // a part must not look like the whole
		}
		return
	}
	http.ServeContent(out, r, "", info.ModifiedAt, content)
}

// content is a file of a guest as [http.ServeContent] needs it: a part is opened when it
// is read. It lives for one request.
type content struct {
	open func(offset int64) (io.ReadCloser, error)
	size int64

	at     int64         // offset of the next byte
	reader *bufio.Reader // of the bytes from offset from on; nil if it is not open
	from   int64
	opened io.Closer
}

var errSeek = errors.New("the offset is before the beginning of the file")

func (f *content) use(opened io.ReadCloser, from int64) {
	f.reader, f.opened, f.from = bufio.NewReaderSize(opened, 32<<10), opened, from
}

func (f *content) close() {
	if f.opened != nil {
		_ = f.opened.Close()
	}
	f.reader, f.opened = nil, nil
}

// Seek implements [io.Seeker].
func (f *content) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += f.at
	case io.SeekEnd:
		offset += f.size
	}
	if offset < 0 {
		return 0, errSeek
	}
	f.at = offset
	return offset, nil
}

// Read implements [io.Reader].
func (f *content) Read(p []byte) (int, error) {
	if f.reader == nil || f.from != f.at {
		f.close()
		opened, err := f.open(f.at)
		if err != nil {
			return 0, err
		}
		f.use(opened, f.at)
	}
	n, err := f.reader.Read(p)
	f.at += int64(n)
	f.from = f.at
	return n, err
}

// idleWriter is an answer of which a write fails if the client reads nothing for a while.
type idleWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

// Write implements [io.Writer].
func (w *idleWriter) Write(p []byte) (int, error) {
	_ = w.control.SetWriteDeadline(time.Now().Add(downloadIdle))
	return w.ResponseWriter.Write(p)
}

// done removes the deadline, which would be that of the next answer, too.
func (w *idleWriter) done() { _ = w.control.SetWriteDeadline(time.Time{}) }
