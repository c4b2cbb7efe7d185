module github.com/mvalve/mvalve

go 1.25.0
