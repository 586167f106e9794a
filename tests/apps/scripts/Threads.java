import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicLong;
import java.util.stream.LongStream;

/** Threads, JIT-compiled code, implicit null checks, stack overflow and a heap that G1 must collect. */
public class Threads {
    static final class Node {
        Node next;
        final int[] payload;

        Node(Node next, int value) {
            this.next = next;
            this.payload = new int[] {value, value * 3};
        }
    }

    static Node[] nodes = new Node[1024];
    static volatile Object sink;

    /** Hot, so compiled; the null check is the fault itself. */
    static int first(Node node) {
        return node.payload[0];
    }

    static long nullChecks() {
        Node node = new Node(null, 7);
        long sum = 0;
        for (int i = 0; i < 300_000; i++) {
            sum += first(node);
        }
        int caught = 0;
        for (int i = 0; i < 200; i++) {
            try {
                sum += first(i % 2 == 0 ? null : node);
            } catch (NullPointerException e) {
                caught++;
            }
        }
        return sum * 1000 + caught;
    }

    static int depth;

    static void recurse() {
        depth++;
        recurse();
    }

    static boolean overflow() {
        depth = 0;
        try {
            recurse();
            return false;
        } catch (StackOverflowError e) {
            return depth > 1000;
        }
    }

    /** Old objects that point to young ones, while others allocate. */
    static long churn(int seed, int rounds) {
        long sum = 0;
        for (int i = 0; i < rounds; i++) {
            int slot = (seed * 31 + i * 17) & 1023;
            synchronized (nodes) {
                Node old = nodes[slot];
                nodes[slot] = new Node(old != null && i % 8 != 0 ? old : null, i);
            }
            sum += new Node(null, i).payload[1];
            if (i % 4096 == 0) {
                sink = new byte[256 << 10];
            }
        }
        return sum;
    }

    public static void main(String[] args) throws Exception {
        System.out.println("null checks " + nullChecks());
        System.out.println("overflow " + overflow() + " " + overflow());

        ExecutorService pool = Executors.newFixedThreadPool(8);
        List<Future<Long>> results = new ArrayList<>();
        for (int i = 0; i < 8; i++) {
            final int seed = i;
            results.add(pool.submit(() -> churn(seed, 150_000)));
        }
        long total = 0;
        for (Future<Long> result : results) {
            total += result.get();
        }
        System.out.println("churn " + total);

        AtomicLong counter = new AtomicLong();
        Map<Integer, Long> map = new ConcurrentHashMap<>();
        CountDownLatch latch = new CountDownLatch(64);
        for (int i = 0; i < 64; i++) {
            final int key = i % 16;
            Thread thread = new Thread(() -> {
                for (int n = 0; n < 1000; n++) {
                    counter.incrementAndGet();
                    map.merge(key, 1L, Long::sum);
                }
                latch.countDown();
            });
            thread.start();
        }
        latch.await();
        pool.shutdown();
        System.out.println("counter " + counter.get() + " map " + new HashMap<>(map).values().stream().mapToLong(Long::longValue).sum());
        System.gc();
        System.out.println("parallel " + LongStream.rangeClosed(1, 2_000_000).parallel().map(n -> n % 7 * n).sum());
        System.out.println("collector " + java.lang.management.ManagementFactory.getGarbageCollectorMXBeans().get(0).getName());
        long collections = 0;
        for (var bean : java.lang.management.ManagementFactory.getGarbageCollectorMXBeans()) {
            collections += bean.getCollectionCount();
        }
        System.out.println("collected " + (collections > 2));
        Thread interrupted = new Thread(() -> {
            try {
                Thread.sleep(60_000);
            } catch (InterruptedException e) {
                System.out.println("interrupted");
            }
        });
        interrupted.start();
        interrupted.interrupt();
        interrupted.join();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("hook")));
        System.exit(3);
    }
}
