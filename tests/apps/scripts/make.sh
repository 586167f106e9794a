set -e
mkdir -p /tmp/p/src && cd /tmp/p
cat > Makefile <<'M'
CFLAGS = -O1 -Wall
OBJS = src/main.o src/a.o src/b.o src/c.o
prog: $(OBJS) libx.so
	$(CC) -o $@ $(OBJS) -L. -lx -lm -Wl,-rpath,'$$ORIGIN'
libx.so: src/x.c
	$(CC) -shared -fPIC -o $@ $<
src/%.o: src/%.c src/common.h
	$(CC) $(CFLAGS) -c -o $@ $<
check: prog
	./prog | tee out
	@test "$$(cat out)" = "6 2.0 x42"
clean:
	rm -f $(OBJS) prog libx.so
.PHONY: check clean
M
echo 'int a(void); int b(void); int c(void); int x(void);' > src/common.h
for f in a b c; do echo "#include \"common.h\"
int $f(void) { return __LINE__; }" > src/$f.c; done
echo 'int x(void) { return 42; }' > src/x.c
cat > src/main.c <<'M'
#include <stdio.h>
#include <math.h>
#include "common.h"
int main(void) { printf("%d %.1f x%d\n", a() + b() + c(), sqrt(4), x()); return 0; }
M
make -j2 check 2>&1 | sort
touch src/common.h; make -j2 2>&1 | sort; make; make clean; ls src
make -f /nonexistent || echo failed $?
