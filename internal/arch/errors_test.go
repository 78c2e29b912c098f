package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// forwarders are the functions that make an error of a code that they are given, by
// their file and name: the kind of the error and the code's place among the arguments.
var forwarders = map[string]struct {
	kind string
	arg  int
}{
	"internal/store/vm_lease.go exhausted":          {"Exhausted", 0},
	"internal/store/vm_lease.go take":               {"Exhausted", 4},
	"internal/webhook/sender/sender.go unavailable": {"Unavailable", 0},
	"internal/vmm/firecracker/spec.go unsupported":  {"Unsupported", 0},
}

// tables are the files that make errors of codes in a table, with a kind beside each.
var tables = []string{"internal/guest/file_error.go", "internal/guest/process.go"}

// errorCode is what the code says about one error code.
type errorCode struct {
	kinds         []string
	message, hint string
}

// TestErrorsReference requires one list of all error codes, which is the code's.
func TestErrorsReference(t *testing.T) {
	codes := errorCodes(t)
	statuses := kindStatuses(t)
	var page strings.Builder
	page.WriteString(generated + "# Error codes\n\n" +
		"Every `code` that an error of the API, or the reason of a failed operation, can have. [REST API](api.md#errors) says what else an\n" +
		"error has. Codes may be added: treat one that you do not know by its status.\n\n" +
		"An error about one field of a request may have the code `invalid_FIELD` (400), where `FIELD` is the name of the outermost\n" +
		"field, as in `invalid_vcpu_count`; a field that a request does not have is `unknown_field`.\n\n" +
		"| Code | Status | Message | What to do |\n|---|---|---|---|\n")
	for _, code := range slices.Sorted(maps.Keys(codes)) {
		c := codes[code]
		var status []string
		for _, kind := range slices.Sorted(slices.Values(c.kinds)) {
			status = append(status, statuses[kind])
		}
		fmt.Fprintf(&page, "| `%s` | %s | %s | %s |\n", code, strings.Join(slices.Compact(status), ", "), cell(c.message), cell(c.hint))
	}
	requirePage(t, "errors.md", page.String())
	requireKnownCodes(t, codes)
}

var (
	verb       = regexp.MustCompile(`%(\[\d\])?[-+#.0-9]*[a-z]`)
	codesInAPI = regexp.MustCompile("\\b[45][0-9]{2} (`[a-z_]+`(, )?)+")
	codeInAPI  = regexp.MustCompile("`([a-z_]+)`")
)

func cell(text string) string {
	text = strings.ReplaceAll(verb.ReplaceAllString(text, "…"), "|", "\\|")
	if strings.Trim(text, "…: ") == "" {
		return "–"
	}
	return text
}

// requireKnownCodes checks the codes that the page about the API has beside statuses.
func requireKnownCodes(t *testing.T, codes map[string]*errorCode) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "reference", "api.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range codesInAPI.FindAllString(string(text), -1) {
		for _, m := range codeInAPI.FindAllStringSubmatch(list, -1) {
			if codes[m[1]] == nil && !strings.HasPrefix(m[1], "invalid_") {
				t.Errorf("docs/reference/api.md has the code %s, and no error has it", m[1])
			}
		}
	}
}

// errorCodes returns the codes of all errors that clients can see.
func errorCodes(t *testing.T) map[string]*errorCode {
	t.Helper()
	found := &codeFinder{t: t, consts: map[string]string{}, codes: map[string]*errorCode{}}
	type source struct {
		below string
		file  *ast.File
	}
	var sources []source
	walk(t, func(file, below string) error {
		if !strings.HasPrefix(below, "internal/") || strings.HasPrefix(below, "internal/fake/") || filepath.Ext(below) != ".go" || strings.HasSuffix(below, "_test.go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err == nil {
			sources = append(sources, source{below, parsed})
			found.addConsts(parsed)
		}
		return err
	})
	for _, s := range sources {
		found.addFile(s.below, s.file)
	}
	if len(found.codes) < 100 {
		t.Fatalf("%d codes were found", len(found.codes))
	}
	return found.codes
}

type codeFinder struct {
	t      *testing.T
	consts map[string]string // by package and name, and by name
	codes  map[string]*errorCode
}

func (f *codeFinder) addConsts(file *ast.File) {
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		for i, name := range spec.Names {
			if i < len(spec.Values) {
				if text, ok := literal(spec.Values[i]); ok {
					f.consts[file.Name.Name+"."+name.Name] = text
				}
			}
		}
		return true
	})
}

// addFile adds the errors that a file makes.
func (f *codeFinder) addFile(below string, file *ast.File) {
	hints := map[ast.Expr]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			f.addCall(below, file.Name.Name, n, hints)
		case *ast.KeyValueExpr:
			f.addTableEntry(below, file.Name.Name, n)
		}
		return true
	})
}

func (f *codeFinder) addCall(below, pkg string, call *ast.CallExpr, hints map[ast.Expr]string) {
	name := nameOf(call.Fun)
	if strings.HasSuffix(name, ".WithHint") && len(call.Args) > 0 {
		hints[rootOf(call)], _ = literal(call.Args[0])
	}
	forwarder, forwards := forwarders[below+" "+name[strings.LastIndex(name, ".")+1:]]
	switch {
	case name == "errs.New":
		code, ok := f.text(pkg, call.Args[1])
		switch message, _ := literal(call.Args[2]); {
		case ok:
			f.add(code, strings.TrimPrefix(nameOf(call.Args[0]), "errs."), message, hints[call])
		case !slices.Contains(tables, below) && !f.isForwarder(below):
			f.t.Errorf("%s makes errors whose codes cannot be told: make them constants, or add the function to forwarders", below)
		}
	case name == "newProblem" && len(call.Args) == 4:
		if code, ok := f.text(pkg, call.Args[2]); ok {
			message, _ := literal(call.Args[3])
			f.add(code, nameOf(call.Args[1]), message, "")
		}
	case forwards:
		if code, ok := f.text(pkg, call.Args[forwarder.arg]); ok {
			f.add(code, forwarder.kind, "", "")
		}
	}
}

func (f *codeFinder) isForwarder(below string) bool {
	for name := range forwarders {
		if strings.HasPrefix(name, below+" ") {
			return true
		}
	}
	return false
}

// addTableEntry adds an entry such as wire.CodeX: {errs.Kind, "code", "message"}; the
// code is the key if the entry has none.
func (f *codeFinder) addTableEntry(below, pkg string, entry *ast.KeyValueExpr) {
	value, ok := entry.Value.(*ast.CompositeLit)
	if !ok || !slices.Contains(tables, below) || len(value.Elts) < 2 {
		return
	}
	kind, isKind := strings.CutPrefix(nameOf(value.Elts[0]), "errs.")
	code, ok := f.text(pkg, entry.Key)
	if !isKind || !ok {
		return
	}
	message, hint := "", ""
	if len(value.Elts) > 3 {
		code, _ = literal(value.Elts[1])
		message, _ = literal(value.Elts[2])
		hint, _ = literal(value.Elts[3])
	}
	f.add(code, kind, message, hint)
}

func (f *codeFinder) add(code, kind, message, hint string) {
	known := f.codes[code]
	if known == nil {
		known = &errorCode{}
		f.codes[code] = known
	}
	if !slices.Contains(known.kinds, kind) {
		known.kinds = append(known.kinds, kind)
	}
	if known.message == "" {
		known.message, known.hint = message, hint
	}
}

// text returns a literal, or the value of a constant.
func (f *codeFinder) text(pkg string, e ast.Expr) (string, bool) {
	if text, ok := literal(e); ok {
		return text, true
	}
	name := nameOf(e)
	if !strings.Contains(name, ".") {
		name = pkg + "." + name
	}
	text, ok := f.consts[name]
	return text, ok
}

// rootOf returns the call at the start of a chain such as errs.New(…).WithField(…).
func rootOf(call *ast.CallExpr) ast.Expr {
	for {
		method, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return call
		}
		before, ok := method.X.(*ast.CallExpr)
		if !ok {
			return call
		}
		call = before
	}
}

func nameOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return nameOf(e.X) + "." + e.Sel.Name
	}
	return ""
}

func literal(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		return text, err == nil && e.Kind == token.STRING
	case *ast.BinaryExpr:
		a, ok := literal(e.X)
		b, too := literal(e.Y)
		return a + b, ok && too
	}
	return "", false
}

// kindStatuses reads the table from kinds of errors to HTTP statuses. Statuses stand
// for themselves.
func kindStatuses(t *testing.T) map[string]string {
	t.Helper()
	path := filepath.Join("..", "server", "httpapi", "errors.go")
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	statuses := map[string]string{}
	for n := 400; n < 600; n++ {
		name := "http.Status" + strings.NewReplacer(" ", "", "-", "").Replace(http.StatusText(n))
		statuses[name] = strconv.Itoa(n)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if pair, ok := n.(*ast.KeyValueExpr); ok {
			kind, ofKind := strings.CutPrefix(nameOf(pair.Key), "errs.")
			if status := statuses[nameOf(pair.Value)]; ofKind && status != "" {
				statuses[kind] = status
			}
		}
		return true
	})
	return statuses
}
