import com.alibaba.nacos.api.NacosFactory;
import com.alibaba.nacos.api.naming.NamingService;
import com.alibaba.nacos.api.naming.pojo.Instance;
import com.alibaba.nacos.api.naming.pojo.ListView;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;

/** Registers and subscribes to Dubbo's providers in Nacos with the stock client, from 16 threads. */
public final class NacosProviders {
    private static final String GROUP = "DEFAULT_GROUP";
    private static final int PAGE = 500;

    public static void main(String[] args) throws Exception {
        long start = System.nanoTime();
        Properties properties = new Properties();
        properties.put("serverAddr", args[1]);
        properties.put("namingLoadCacheAtStart", "false");
        NamingService naming = NacosFactory.createNamingService(properties);
        ExecutorService threads = Executors.newFixedThreadPool(16);
        switch (args[0]) {
            case "write" -> write(naming, threads, Integer.parseInt(args[2]), Integer.parseInt(args[3]));
            case "read" -> read(naming, threads, start);
            default -> throw new IllegalArgumentException(args[0]);
        }
        // What it registered goes with its connection.
        System.in.read();
        System.exit(0);
    }

    private static void write(NamingService naming, ExecutorService threads, int services, int instances) throws Exception {
        List<Future<?>> calls = new ArrayList<>();
        for (int s = 0; s < services; s++) {
            String name = "com.company.order.api.Facade" + s + "Service";
            List<Instance> batch = new ArrayList<>();
            for (int n = s; n < instances; n += services) {
                Instance instance = new Instance();
                instance.setIp("10." + (n >> 16 & 255) + "." + (n >> 8 & 255) + "." + (n & 255));
                instance.setPort(20880);
                instance.setMetadata(Map.ofEntries(
                    Map.entry("application", "app-" + s % 997 + "-provider"), Map.entry("category", "providers"),
                    Map.entry("deprecated", "false"), Map.entry("dubbo", "2.0.2"), Map.entry("dynamic", "true"),
                    Map.entry("generic", "false"), Map.entry("interface", name), Map.entry("methods", "find,place,cancel"),
                    Map.entry("path", name), Map.entry("pid", "" + (1000 + n % 30_000)), Map.entry("protocol", "dubbo"),
                    Map.entry("release", "3.2.14"), Map.entry("revision", "1.0.0"), Map.entry("serialization", "hessian2"),
                    Map.entry("side", "provider"), Map.entry("timestamp", "" + (1_764_000_000_000L + n)),
                    Map.entry("version", "1.0.0"), Map.entry("zone", "cn-hangzhou-" + (char) ('g' + n % 3))));
                batch.add(instance);
            }
            calls.add(threads.submit(() -> {
                naming.batchRegisterInstance("providers:" + name + ":1.0.0:", GROUP, batch);
                return null;
            }));
        }
        for (Future<?> call : calls) {
            call.get();
        }
        System.out.println("WRITTEN");
    }

    private static void read(NamingService naming, ExecutorService threads, long start) throws Exception {
        Map<String, List<Instance>> known = new ConcurrentHashMap<>();
        AtomicInteger instances = new AtomicInteger();
        List<Future<?>> calls = new ArrayList<>();
        ListView<String> names;
        int page = 0;
        do {
            page++;
            names = naming.getServicesOfServer(page, PAGE, GROUP);
            for (String name : names.getData()) {
                calls.add(threads.submit(() -> {
                    List<Instance> found = naming.getAllInstances(name, GROUP, true);
                    known.put(name, found);
                    instances.addAndGet(found.size());
                    return null;
                }));
            }
        } while (names.getData().size() == PAGE);
        for (Future<?> call : calls) {
            call.get();
        }
        ReadReport.print(known.size(), instances.get(), start);
    }
}
