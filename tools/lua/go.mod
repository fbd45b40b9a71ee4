// The Lua of Argo CD, whose health checks docs/gitops.md has: the same interpreter, as a program.
module tidemark.dev/tools/lua

go 1.23

require github.com/yuin/gopher-lua v1.1.1

require github.com/chzyer/readline v0.0.0-20180603132655-2972be24d48e // indirect
