// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package publicapi holds the packages that other modules import to what those modules can name.
package publicapi

import (
	"bytes"
	"errors"
	"fmt"
	"go/importer"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/xdp-audit/xdp_audit_exporter"

// publicPackages are the packages that other modules import.
var publicPackages = []string{module + "/bpf", module + "/collector"}

// No exported declaration mentions a type of an internal package, unless an exported alias lets
// other modules name it.
func TestPublicAPINamesNoInternalType(t *testing.T) {
	imports, err := newImporter(publicPackages...)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range publicPackages {
		t.Run(strings.TrimPrefix(path, module+"/"), func(t *testing.T) {
			p, err := imports.Import(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, leak := range internalTypes(p) {
				t.Errorf("%s: give it an exported alias, or a type of the package", leak)
			}
		})
	}
}

// The check finds an internal type wherever an exported declaration can mention one.
func TestInternalTypesAreFound(t *testing.T) {
	hidden := types.NewPackage(module+"/internal/hidden", "hidden")
	p := types.NewPackage(module+"/public", "public")
	newType := func(in *types.Package, name string, underlying types.Type) *types.Named {
		return types.NewNamed(types.NewTypeName(token.NoPos, in, name, nil), underlying, nil)
	}
	secret := newType(hidden, "Secret", types.NewStruct(nil, nil))
	aliased := newType(hidden, "Aliased", types.NewStruct([]*types.Var{
		types.NewField(token.NoPos, hidden, "Field", secret, false),
		types.NewField(token.NoPos, hidden, "field", secret, false),
	}, nil))
	signature := func(receiver *types.Var, parameter types.Type) *types.Signature {
		return types.NewSignatureType(receiver, nil, nil, types.NewTuple(types.NewVar(token.NoPos, p, "v", parameter)), nil, false)
	}
	open := newType(p, "Open", types.NewStruct(nil, nil))
	receiver := types.NewVar(token.NoPos, p, "o", types.NewPointer(open))
	open.AddMethod(types.NewFunc(token.NoPos, p, "Method", signature(receiver, types.NewSlice(secret))))
	open.AddMethod(types.NewFunc(token.NoPos, p, "method", signature(receiver, secret)))
	for _, object := range []types.Object{
		open.Obj(),
		types.NewTypeName(token.NoPos, p, "Alias", types.NewAlias(types.NewTypeName(token.NoPos, p, "Alias", nil), aliased)),
		types.NewTypeName(token.NoPos, p, "Aliases", types.NewAlias(types.NewTypeName(token.NoPos, p, "Aliases", nil), types.NewSlice(secret))),
		types.NewFunc(token.NoPos, p, "Function", signature(nil, types.NewMap(types.Typ[types.String], types.NewPointer(secret)))),
		types.NewFunc(token.NoPos, p, "Harmless", signature(nil, aliased)),
		types.NewFunc(token.NoPos, p, "function", signature(nil, secret)),
		types.NewVar(token.NoPos, p, "Variable", types.NewChan(types.SendRecv, secret)),
		types.NewConst(token.NoPos, p, "Constant", newType(hidden, "Number", types.Typ[types.Int]), nil),
	} {
		p.Scope().Insert(object)
	}
	want := []string{
		"public.Alias.Field mentions internal/hidden.Secret",
		"public.Aliases mentions internal/hidden.Secret",
		"public.Constant mentions internal/hidden.Number",
		"public.Function mentions internal/hidden.Secret",
		"public.Open.Method mentions internal/hidden.Secret",
		"public.Variable mentions internal/hidden.Secret",
	}
	if got := internalTypes(p); !slices.Equal(got, want) {
		t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// newImporter returns an importer of packages of this module and of those that they import. It
// reads what the compiler has written about them, so that nothing but the go command is needed.
func newImporter(paths ...string) (types.Importer, error) {
	list := exec.Command("go", append([]string{"list", "-deps", "-export", "-f", "{{.ImportPath}}={{.Export}}"}, paths...)...)
	var complaints bytes.Buffer
	list.Stderr = &complaints
	output, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, complaints.Bytes())
	}
	files := map[string]string{}
	for line := range strings.Lines(string(output)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), "=")
		files[path] = file
	}
	open := func(path string) (io.ReadCloser, error) {
		file, ok := files[path]
		if !ok || file == "" {
			return nil, errors.New("the go command lists no export data")
		}
		return os.Open(file)
	}
	return importer.ForCompiler(token.NewFileSet(), "gc", open), nil
}

// internalTypes returns a sentence for each exported declaration of a package and each type of
// an internal package that it mentions, unless the package has an exported alias of that type.
func internalTypes(p *types.Package) []string {
	w := walker{p: p, aliased: map[*types.TypeName]bool{}, leaks: map[string]bool{}}
	for _, name := range p.Scope().Names() {
		if object, ok := p.Scope().Lookup(name).(*types.TypeName); ok && object.IsAlias() && object.Exported() {
			if named, ok := types.Unalias(object.Type()).(*types.Named); ok {
				w.aliased[named.Origin().Obj()] = true
			}
		}
	}
	for _, name := range p.Scope().Names() {
		object := p.Scope().Lookup(name)
		if !object.Exported() {
			continue
		}
		where := p.Name() + "." + name
		if _, isType := object.(*types.TypeName); !isType {
			w.mention(where, object.Type())
			continue
		}
		if named, ok := types.Unalias(object.Type()).(*types.Named); ok {
			w.declare(where, named)
			continue
		}
		w.mention(where, types.Unalias(object.Type()))
	}
	return slices.Sorted(maps.Keys(w.leaks))
}

// walker looks through the declarations of a package.
type walker struct {
	p       *types.Package
	aliased map[*types.TypeName]bool // that have an exported alias in the package
	leaks   map[string]bool
}

// declare looks through what a type shows to those who can name it: its exported fields and
// methods.
func (w *walker) declare(where string, named *types.Named) {
	for method := range named.Methods() {
		if method.Exported() {
			w.mention(where+"."+method.Name(), method.Type())
		}
	}
	w.mention(where, named.Underlying())
}

// mention looks for internal types in a type as it is written.
func (w *walker) mention(where string, t types.Type) {
	switch t := t.(type) {
	case *types.Alias:
		if object := t.Obj(); isInternal(object.Pkg()) || !object.Exported() {
			w.mention(where, types.Unalias(t))
		}
	case *types.Named:
		if object := t.Obj(); isInternal(object.Pkg()) && !w.aliased[t.Origin().Obj()] {
			w.leaks[fmt.Sprintf("%s mentions %s.%s", where, strings.TrimPrefix(object.Pkg().Path(), module+"/"), object.Name())] = true
		} else if object.Pkg() == w.p && !object.Exported() {
			w.declare(where, t) // what it shows can be used, although it cannot be named
		}
		for argument := range t.TypeArgs().Types() {
			w.mention(where, argument)
		}
	case *types.Pointer:
		w.mention(where, t.Elem())
	case *types.Slice:
		w.mention(where, t.Elem())
	case *types.Array:
		w.mention(where, t.Elem())
	case *types.Chan:
		w.mention(where, t.Elem())
	case *types.Map:
		w.mention(where, t.Key())
		w.mention(where, t.Elem())
	case *types.Signature:
		for parameter := range t.Params().Variables() {
			w.mention(where, parameter.Type())
		}
		for result := range t.Results().Variables() {
			w.mention(where, result.Type())
		}
	case *types.Struct:
		for field := range t.Fields() {
			if field.Exported() {
				w.mention(where+"."+field.Name(), field.Type())
			}
		}
	case *types.Interface:
		for method := range t.Methods() {
			w.mention(where+"."+method.Name(), method.Type())
		}
	}
}

func isInternal(p *types.Package) bool {
	return p != nil && strings.HasPrefix(p.Path(), module+"/internal/")
}
